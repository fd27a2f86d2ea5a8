//! A fact as the table keeps it.

use std::{borrow::Cow, sync::Arc};

use ksi_record::{JournalError, Millis, Origin, Record, Seq};
use serde_json::value::RawValue;

use crate::{chain::Check, texts};

/// The columns in the order of [`Row`], then the check, and the places of long texts in `data`.
pub(crate) const COLUMNS: &str =
    r#"seq, at, name, v, subject, principal, correlation, cause, chain, data, "check", texts"#;

/// SQLite's numbers are signed; a fact whose numbers do not fit never becomes a row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row<'a> {
    pub(crate) seq: i64,
    pub(crate) at: i64,
    pub(crate) name: &'a str,
    pub(crate) version: i64,
    pub(crate) subject: &'a str,
    pub(crate) principal: &'a str,
    pub(crate) correlation: Option<&'a str>,
    pub(crate) cause: Option<i64>,
    pub(crate) chain: Option<&'a str>,
    pub(crate) data: &'a str,
}

impl<'a> Row<'a> {
    pub(crate) fn of(record: &'a Record) -> Result<Self, JournalError> {
        let number = |number: u64| {
            i64::try_from(number).map_err(|error| JournalError {
                message: format!("fact {} holds a number beyond 2^63: {number}", record.seq),
                source: Some(Box::new(error)),
            })
        };
        Ok(Self {
            seq: number(record.seq.0)?,
            at: number(record.at.0)?,
            name: &record.name,
            version: record.version.into(),
            subject: &record.subject,
            principal: &record.origin.principal,
            correlation: record.origin.correlation.as_deref(),
            cause: record.origin.cause.map(|cause| number(cause.0)).transpose()?,
            chain: record.origin.chain.as_deref(),
            data: record.data.get(),
        })
    }

    /// Writes itself and its check with a statement of [`COLUMNS`] that wrote the row `before`.
    ///
    /// SQLite keeps what a statement was given, so only what differs is given again.
    pub(crate) fn insert(
        &self,
        before: Option<&Row<'_>>,
        statement: &mut rusqlite::Statement<'_>,
        check: &Check,
        texts: Option<&[u8]>,
    ) -> rusqlite::Result<usize> {
        macro_rules! bind {
            ($column:literal, $field:ident) => {
                if before.is_none_or(|before| before.$field != self.$field) {
                    statement.raw_bind_parameter($column, self.$field)?;
                }
            };
        }
        bind!(1, seq);
        bind!(2, at);
        bind!(3, name);
        bind!(4, version);
        bind!(5, subject);
        bind!(6, principal);
        bind!(7, correlation);
        bind!(8, cause);
        bind!(9, chain);
        bind!(10, data);
        statement.raw_bind_parameter(11, check)?;
        statement.raw_bind_parameter(12, texts)?;
        statement.raw_execute()
    }

    /// Reads itself and its check from a row of [`COLUMNS`].
    pub(crate) fn read(row: &'a rusqlite::Row<'_>) -> rusqlite::Result<(Self, Check)> {
        let text = |column| -> rusqlite::Result<_> { Ok(row.get_ref(column)?.as_str()?) };
        let optional =
            |column| -> rusqlite::Result<_> { Ok(row.get_ref(column)?.as_str_or_null()?) };
        let fact = Self {
            seq: row.get(0)?,
            at: row.get(1)?,
            name: text(2)?,
            version: row.get(3)?,
            subject: text(4)?,
            principal: text(5)?,
            correlation: optional(6)?,
            cause: row.get(7)?,
            chain: optional(8)?,
            data: text(9)?,
        };
        Ok((fact, row.get(10)?))
    }

    /// The places of the long texts that `data` lacks.
    pub(crate) fn texts<'r>(row: &'r rusqlite::Row<'_>) -> rusqlite::Result<Option<&'r [u8]>> {
        Ok(row.get_ref(11)?.as_blob_or_null()?)
    }

    /// The same with all of its texts; none when one of them is lost.
    pub(crate) fn whole(
        connection: &rusqlite::Connection,
        row: &'a rusqlite::Row<'_>,
    ) -> rusqlite::Result<(Self, Option<Cow<'a, str>>, Check)> {
        let (fact, check) = Self::read(row)?;
        Ok((fact, texts::whole(connection, fact.data, Self::texts(row)?)?, check))
    }

    /// The fact, or why this is none: somebody edited the file.
    pub(crate) fn record(&self) -> Result<Record, JournalError> {
        self.parse().map_err(|source| JournalError {
            message: format!("fact {} is not what was written", self.seq),
            source: Some(source),
        })
    }

    /// One of its texts is not there any more.
    pub(crate) fn lost(&self) -> JournalError {
        let message = format!("fact {} is not what was written: a text of it is lost", self.seq);
        JournalError { message, source: None }
    }

    fn parse(&self) -> Result<Record, Box<dyn std::error::Error + Send + Sync>> {
        let origin = Origin {
            principal: self.principal.into(),
            correlation: self.correlation.map(str::to_owned),
            cause: self.cause.map(|cause| u64::try_from(cause).map(Seq)).transpose()?,
            chain: self.chain.map(str::to_owned),
        };
        Ok(Record {
            seq: Seq(self.seq.try_into()?),
            at: Millis(self.at.try_into()?),
            name: Cow::Owned(self.name.to_owned()),
            version: self.version.try_into()?,
            subject: self.subject.to_owned(),
            origin: Arc::new(origin),
            data: RawValue::from_string(self.data.to_owned())?,
        })
    }
}
