//! A query as SQL; every value is bound, none becomes part of the text.

use ksi_record::{Document, Query, Select};
use rusqlite::{Connection, params, types::Value};
use serde_json::value::RawValue;

use crate::{row::COLUMNS, texts};

/// A statement and the values it binds, in order.
#[derive(Debug)]
pub(crate) struct Statement {
    pub(crate) sql: String,
    pub(crate) values: Vec<Value>,
}

impl Statement {
    /// The statement for a query; `None` when numbers alone say that nothing can match.
    pub(crate) fn of(query: &Query) -> Option<Self> {
        let mut select = Self {
            sql: format!("SELECT {COLUMNS} FROM journal WHERE seq > ?"),
            values: vec![number(query.after.0)?],
        };
        // An upper bound that no stored number reaches excludes nothing.
        if let Some(until) = query.until.and_then(|until| number(until.0)) {
            select.and("seq <= ?", until);
        }
        if let Some(since) = query.since {
            select.and("at >= ?", number(since.0)?);
        }
        if let Some(before) = query.before.and_then(|before| number(before.0)) {
            select.and("at < ?", before);
        }
        if !query.subjects.is_empty() {
            let places = vec!["?"; query.subjects.len()].join(", ");
            select.sql.push_str(&format!(" AND subject IN ({places})"));
            select.values.extend(query.subjects.iter().cloned().map(Value::from));
        }
        if let Some(correlation) = &query.correlation {
            select.and("correlation = ?", correlation.clone().into());
        }
        if !query.names.is_empty() {
            select.sql.push_str(" AND ");
            select.any_name(&query.names);
        }
        select.order(query);
        Some(select)
    }

    fn and(&mut self, condition: &str, value: Value) {
        self.sql.push_str(" AND ");
        self.sql.push_str(condition);
        self.values.push(value);
    }

    /// One of these names, as a balanced tree: SQLite bounds how deep an expression is.
    fn any_name(&mut self, patterns: &[String]) {
        if let [pattern] = patterns {
            return self.name(pattern);
        }
        let (left, right) = patterns.split_at(patterns.len() / 2);
        self.sql.push('(');
        self.any_name(left);
        self.sql.push_str(" OR ");
        self.any_name(right);
        self.sql.push(')');
    }

    /// A prefix is a range of bytes, up to one that no text holds; no character is special in it.
    fn name(&mut self, pattern: &str) {
        let Some(prefix) = pattern.strip_suffix('*') else {
            self.sql.push_str("name = ?");
            return self.values.push(pattern.to_owned().into());
        };
        self.sql.push_str("(CAST(name AS BLOB) >= ? AND CAST(name AS BLOB) < ?)");
        let from = prefix.as_bytes().to_vec();
        let to = [prefix.as_bytes(), &[0xff]].concat();
        self.values.extend([from.into(), to.into()]);
    }

    fn order(&mut self, query: &Query) {
        self.sql.push_str(if query.newest_first { " ORDER BY seq DESC" } else { " ORDER BY seq" });
        if let Some(limit) = number(query.limit as u64).filter(|_| query.limit > 0) {
            self.sql.push_str(" LIMIT ?");
            self.values.push(limit);
        }
    }
}

/// The documents that are asked for.
pub(crate) fn documents(
    connection: &Connection,
    select: &Select,
) -> rusqlite::Result<Vec<Document>> {
    let Select { collection, key, last_first, offset, limit } = select;
    let order = if *last_first { "sort DESC, key DESC" } else { "sort, key" };
    let sql = format!(
        "SELECT collection, key, sort, data, texts FROM documents
        WHERE collection = ? AND (? IS NULL OR key = ?) ORDER BY {order} LIMIT ? OFFSET ?"
    );
    let all = |limit: usize| if limit == 0 { -1 } else { i64::try_from(limit).unwrap_or(-1) };
    let mut statement = connection.prepare_cached(&sql)?;
    let values = params![collection, key, key, all(*limit), *offset as i64];
    let found = statement.query_map(values, |row| {
        let invalid = |error| {
            rusqlite::Error::FromSqlConversionFailure(3, rusqlite::types::Type::Text, error)
        };
        let places = row.get_ref(4)?.as_blob_or_null()?;
        let data = texts::whole(connection, row.get_ref(3)?.as_str()?, places)?;
        let data = data.ok_or_else(|| invalid("a text of it is lost".into()))?.into_owned();
        let data = RawValue::from_string(data).map_err(|error| invalid(error.into()))?;
        Ok(Document { collection: row.get(0)?, key: row.get(1)?, sort: row.get(2)?, data })
    })?;
    found.collect()
}

fn number(number: u64) -> Option<Value> {
    i64::try_from(number).ok().map(Value::from)
}
