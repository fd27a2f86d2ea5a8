//! What every journal promises, as tests that each journal's own tests call.
//!
//! Each takes a function that opens the same journal anew, as a restart does; what it opened
//! before may still be there.

#![allow(clippy::unwrap_used, reason = "only tests call this")]

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    sync::{Arc, Barrier},
    thread,
};

use crate::{
    document::{Document, Select},
    journal::{Append, AppendError, Journal, Query},
    record::{Millis, Origin, Record, Seq},
    snapshot::{Section, Snapshot},
};

/// Opens the journal under test; every call opens the same one.
pub type Open<'a> = &'a dyn Fn() -> Box<dyn Journal>;

/// Makes a test of each function of the suite; `$open` is evaluated anew in each.
#[macro_export]
macro_rules! journal_suite {
    ($open:expr) => {
        $crate::journal_suite!($open;
            an_empty_journal_has_no_head_and_no_facts,
            facts_are_read_as_they_were_written,
            facts_outlive_the_journal_that_wrote_them,
            reading_obeys_every_filter,
            a_page_and_a_tail_are_cut_at_the_limit,
            an_append_that_expects_another_head_is_a_conflict,
            an_append_of_an_earlier_owner_is_a_conflict,
            an_append_without_a_claim_is_a_conflict,
            of_two_appends_at_once_one_is_a_conflict,
            an_epoch_grows_with_every_claim_also_over_a_restart,
            a_batch_with_a_gap_is_refused_whole,
            an_empty_batch_writes_nothing_but_is_checked,
            ten_megabytes_fit_into_one_fact,
            texts_keep_nul_and_every_kind_of_character,
            numbers_keep_their_63_bits_and_queries_take_64,
            many_names_are_one_query,
            random_queries_find_what_wants_says,
            documents_are_read_in_their_order_and_the_same_place_replaces,
            a_document_is_written_with_its_facts_or_not_at_all,
            the_newest_snapshot_comes_back_as_it_was_kept,
        );
    };
    ($open:expr; $($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            $crate::testing::journal_suite::$name(&$open);
        })*
    };
}

/// Appends so many plain facts behind `head`.
pub fn append(journal: &dyn Journal, epoch: u64, head: u64, count: u64) -> Result<(), AppendError> {
    let records: Vec<_> = (head + 1..=head + count).map(|seq| Arc::new(record(seq))).collect();
    journal.append(Append { records: &records, documents: &[], expect: Seq(head), epoch })
}

/// A plain fact; its fields depend on its place alone.
pub fn record(seq: u64) -> Record {
    const NAMES: [&str; 5] = ["agent:spawned", "agent:ended", "agents:seen", "request:done", "a"];
    let pick = seq as usize;
    let origin = Origin {
        principal: ["operator", "agent:bob", "system"][pick % 3].into(),
        correlation: (!pick.is_multiple_of(4)).then(|| format!("c{}", pick % 4)),
        cause: pick.is_multiple_of(2).then_some(Seq(seq / 2)),
        chain: pick.is_multiple_of(5).then(|| format!("chain-{}", pick % 10)),
    };
    Record {
        seq: Seq(seq),
        at: Millis(1_000 + seq / 3 * 10),
        name: NAMES[pick * 7 % 5].into(),
        version: (seq % 3) as u16,
        subject: ["bob", "ann", "", "bob:1"][pick / 2 % 4].into(),
        origin: Arc::new(origin),
        data: json(&format!(r#"{{ "n":{seq} }}"#)),
    }
}

/// A new journal is empty.
pub fn an_empty_journal_has_no_head_and_no_facts(open: Open<'_>) {
    let journal = open();
    assert_eq!(journal.head().unwrap(), Seq(0));
    assert_eq!(read(&*journal, &Query::default()), texts(&[]));
    assert_eq!(read(&*journal, &Query::tail(5)), texts(&[]));
}

/// Every field comes back as it went in, in the order written.
pub fn facts_are_read_as_they_were_written(open: Open<'_>) {
    let (journal, epoch) = owned(open);
    append(&*journal, epoch, 0, 1).unwrap();
    append(&*journal, epoch, 1, 40).unwrap();
    assert_eq!(journal.head().unwrap(), Seq(41));
    assert_eq!(read(&*journal, &Query::default()), texts(&records(41)));
}

/// A restart finds what was written, and goes on behind it.
pub fn facts_outlive_the_journal_that_wrote_them(open: Open<'_>) {
    for round in 0..4 {
        let (journal, epoch) = owned(open);
        assert_eq!(journal.head().unwrap(), Seq(round * 10));
        append(&*journal, epoch, round * 10, 10).unwrap();
    }
    assert_eq!(read(&*open(), &Query::default()), texts(&records(40)));
}

/// Each filter alone, against places worked out by hand.
pub fn reading_obeys_every_filter(open: Open<'_>) {
    let (journal, epoch) = owned(open);
    append(&*journal, epoch, 0, 12).unwrap();
    let all = Query::default;
    let names = |names: &[&str]| Query { names: strings(names), ..all() };
    let cases: [(Query, &[u64]); 14] = [
        (Query { after: Seq(10), ..all() }, &[11, 12]),
        (Query { until: Some(Seq(2)), ..all() }, &[1, 2]),
        (Query { after: Seq(4), until: Some(Seq(4)), ..all() }, &[]),
        (Query { since: Some(Millis(1_030)), ..all() }, &[9, 10, 11, 12]),
        (Query { before: Some(Millis(1_010)), ..all() }, &[1, 2]),
        (names(&["agent:spawned"]), &[5, 10]),
        (names(&["agent:*"]), &[3, 5, 8, 10]),
        (names(&["agent*"]), &[1, 3, 5, 6, 8, 10, 11]),
        (names(&["a"]), &[2, 7, 12]),
        (names(&["request:*", "a"]), &[2, 4, 7, 9, 12]),
        (names(&["%", "agent:_nded", "?", "[a]", "'; --"]), &[]),
        (Query { subjects: vec!["bob".into()], ..all() }, &[1, 8, 9]),
        (Query { correlation: Some("c3".into()), ..all() }, &[3, 7, 11]),
        (Query { newest_first: true, since: Some(Millis(1_030)), ..all() }, &[12, 11, 10, 9]),
    ];
    for (query, expected) in cases {
        assert_eq!(places(&*journal, &query), expected, "{query:?}");
    }
    assert_eq!(places(&*journal, &names(&["*"])).len(), 12);
}

/// The limit cuts after the filters, from the end that is asked for.
pub fn a_page_and_a_tail_are_cut_at_the_limit(open: Open<'_>) {
    let (journal, epoch) = owned(open);
    append(&*journal, epoch, 0, 10).unwrap();
    assert_eq!(places(&*journal, &Query::page(Seq(3), 3)), [4, 5, 6]);
    assert_eq!(places(&*journal, &Query::page(Seq(8), 3)), [9, 10]);
    let cut = |bytes| places(&*journal, &Query { bytes, ..Query::page(Seq(3), 3) });
    assert_eq!((cut(1), cut(usize::MAX)), (vec![4], vec![4, 5, 6]));
    assert_eq!(places(&*journal, &Query::tail(3)), [10, 9, 8]);
    let names = strings(&["agent:*"]);
    assert_eq!(places(&*journal, &Query { names, limit: 2, ..Query::default() }), [3, 5]);
    assert_eq!(places(&*journal, &Query::page(Seq(0), usize::MAX)).len(), 10);
}

/// Whoever knows too little or too much of the journal may not write.
pub fn an_append_that_expects_another_head_is_a_conflict(open: Open<'_>) {
    let (journal, epoch) = owned(open);
    append(&*journal, epoch, 0, 3).unwrap();
    for wrong in [0, 2, 4] {
        let error = append(&*journal, epoch, wrong, 1).unwrap_err();
        let AppendError::Conflict { expect, found } = error else { panic!("{error}") };
        assert_eq!((expect, found), (Seq(wrong), Seq(3)));
    }
    append(&*journal, epoch, 3, 1).unwrap();
    assert_eq!(read(&*journal, &Query::default()), texts(&records(4)));
}

/// A second owner fences the first off, at the first's own expected head too.
pub fn an_append_of_an_earlier_owner_is_a_conflict(open: Open<'_>) {
    let (first, old) = owned(open);
    append(&*first, old, 0, 2).unwrap();
    let (second, new) = owned(open);
    let error = append(&*first, old, 2, 1).unwrap_err();
    assert!(matches!(error, AppendError::Conflict { found: Seq(2), .. }), "{error}");
    append(&*second, new, 2, 1).unwrap();
    let error = append(&*first, old, 3, 1).unwrap_err();
    assert!(matches!(error, AppendError::Conflict { found: Seq(3), .. }), "{error}");
    assert_eq!(read(&*first, &Query::default()), texts(&records(3)));
}

/// Nobody owns a journal that nobody claimed; and no epoch is good that was never given out.
pub fn an_append_without_a_claim_is_a_conflict(open: Open<'_>) {
    let (journal, epoch) = owned(open);
    for never in [0, epoch + 1, u64::MAX] {
        let error = append(&*journal, never, 0, 1).unwrap_err();
        assert!(matches!(error, AppendError::Conflict { .. }), "{error}");
    }
    assert_eq!(journal.head().unwrap(), Seq(0));
}

/// Whoever comes second finds a head that it did not expect, however close the race.
pub fn of_two_appends_at_once_one_is_a_conflict(open: Open<'_>) {
    let (one, epoch) = owned(open);
    let other = open();
    for head in 0..200 {
        let start = Barrier::new(2);
        let race = |journal: &dyn Journal| {
            start.wait();
            append(journal, epoch, head, 1)
        };
        let results = thread::scope(|scope| {
            let rival = scope.spawn(|| race(&*other));
            [race(&*one), rival.join().unwrap()]
        });
        let won = results.iter().filter(|result| result.is_ok()).count();
        let lost = |result: &&_| matches!(result, Err(AppendError::Conflict { .. }));
        assert_eq!((won, results.iter().filter(lost).count()), (1, 1), "{results:?}");
    }
    assert_eq!(read(&*open(), &Query::default()), texts(&records(200)));
}

/// No two owners ever have the same epoch.
pub fn an_epoch_grows_with_every_claim_also_over_a_restart(open: Open<'_>) {
    let mut last = 0;
    for _ in 0..3 {
        let journal = open();
        for _ in 0..3 {
            let epoch = journal.claim().unwrap();
            assert!(epoch > last, "epoch {epoch} behind {last}");
            last = epoch;
        }
    }
}

/// A batch that does not follow on is written neither whole nor in part.
pub fn a_batch_with_a_gap_is_refused_whole(open: Open<'_>) {
    let (journal, epoch) = owned(open);
    append(&*journal, epoch, 0, 2).unwrap();
    for seqs in [[3, 5], [4, 5], [3, 3], [2, 3]] {
        let records = seqs.map(|seq| Arc::new(record(seq)));
        let batch = Append { records: &records, documents: &[], expect: Seq(2), epoch };
        let error = journal.append(batch).unwrap_err();
        assert!(matches!(error, AppendError::Io(_)), "{error}");
        assert_eq!(read(&*open(), &Query::default()), texts(&self::records(2)), "{seqs:?}");
    }
    append(&*journal, epoch, 2, 2).unwrap();
    assert_eq!(read(&*open(), &Query::default()), texts(&records(4)));
}

/// No facts are fine, but not from the wrong owner or at the wrong place.
pub fn an_empty_batch_writes_nothing_but_is_checked(open: Open<'_>) {
    let (journal, epoch) = owned(open);
    append(&*journal, epoch, 0, 0).unwrap();
    append(&*journal, epoch, 7, 0).unwrap_err();
    append(&*journal, epoch + 1, 0, 0).unwrap_err();
    assert_eq!(journal.head().unwrap(), Seq(0));
}

/// A fact may be large.
pub fn ten_megabytes_fit_into_one_fact(open: Open<'_>) {
    let (journal, epoch) = owned(open);
    let text: String = (0..10 << 20).map(|n| char::from(b'a' + (n % 23) as u8)).collect();
    let big = Record { data: json(&format!("\"{text}\"")), ..record(1) };
    write(&*journal, epoch, 0, std::slice::from_ref(&big));
    append(&*journal, epoch, 1, 1).unwrap();
    drop(journal);
    let found = open().read(&Query::default()).unwrap();
    assert!(found[0].data.get() == big.data.get(), "the large fact changed");
    assert_eq!(found[1].data.get(), record(2).data.get());
}

/// Texts are bytes to the journal, in facts as in queries.
pub fn texts_keep_nul_and_every_kind_of_character(open: Open<'_>) {
    let (journal, epoch) = owned(open);
    let odd = ["a\0b", "\0", "a", "ä\u{301}", "日本", "🦀", "\u{10FFFF}", "\u{FEFF}x", "'\"\\%*?["];
    let records: Vec<_> = (1..).zip(odd).map(|(seq, text)| speaking(seq, text)).collect();
    write(&*journal, epoch, 0, &records);
    drop(journal);
    let journal = open();
    assert_eq!(read(&*journal, &Query::default()), texts(&records));
    for (seq, text) in (1..).zip(odd) {
        let all = Query::default;
        let subject = Query { subjects: vec![text.into()], ..all() };
        assert_eq!(places(&*journal, &subject), [seq], "{text:?}");
        let correlation = Query { correlation: Some(text.into()), ..all() };
        assert_eq!(places(&*journal, &correlation), [seq], "{text:?}");
        let name = Query { names: vec![text.into()], ..all() };
        assert_eq!(places(&*journal, &name), [seq], "{text:?}");
    }
    for prefix in ["a*", "a\0*", "\u{10FFFF}*", "日*", "ä*", "*"] {
        let query = Query { names: vec![prefix.into()], ..Query::default() };
        assert_eq!(places(&*journal, &query), wanted(&records, &query), "{prefix:?}");
    }
}

/// Times and places up to 2^63 - 1 are kept; a query may name any.
pub fn numbers_keep_their_63_bits_and_queries_take_64(open: Open<'_>) {
    const LAST: u64 = i64::MAX as u64;
    let (journal, epoch) = owned(open);
    let origin = Origin { cause: Some(Seq(LAST)), ..Origin::default() };
    let early = Record { at: Millis(0), version: 0, ..record(1) };
    let late = Record {
        at: Millis(LAST),
        version: u16::MAX,
        origin: Arc::new(origin),
        data: json("18446744073709551615"),
        ..record(2)
    };
    let records = [early, late];
    write(&*journal, epoch, 0, &records);
    assert_eq!(read(&*journal, &Query::default()), texts(&records));
    for number in [0, 1, 2, LAST - 1, LAST, LAST + 1, u64::MAX] {
        let all = Query::default;
        for query in [
            Query { after: Seq(number), ..all() },
            Query { until: Some(Seq(number)), ..all() },
            Query { since: Some(Millis(number)), ..all() },
            Query { before: Some(Millis(number)), ..all() },
        ] {
            assert_eq!(places(&*journal, &query), wanted(&records, &query), "{query:?}");
        }
    }
}

/// A query may name thousands of facts.
pub fn many_names_are_one_query(open: Open<'_>) {
    let (journal, epoch) = owned(open);
    append(&*journal, epoch, 0, 10).unwrap();
    let mut names: Vec<_> = (0..6_000).map(|n| format!("nobody:{n}*")).collect();
    names.push("agent:spawned".into());
    let query = Query { names, ..Query::default() };
    assert_eq!(places(&*journal, &query), [5, 10]);
}

/// Random queries over random facts; a failure prints its query.
pub fn random_queries_find_what_wants_says(open: Open<'_>) {
    let (journal, epoch) = owned(open);
    let mut dice = Dice(0x9e37_79b9);
    let records: Vec<_> = (1..=300).map(|seq| dice.record(seq)).collect();
    write(&*journal, epoch, 0, &records);
    let mut sizes = BTreeSet::new();
    for _ in 0..2_000 {
        let query = dice.query();
        let expected = wanted(&records, &query);
        sizes.insert(expected.len());
        assert_eq!(places(&*journal, &query), expected, "{query:?}");
    }
    assert!(sizes.len() > 30, "the queries hardly differ: {sizes:?}");
}

fn owned(open: Open<'_>) -> (Box<dyn Journal>, u64) {
    let journal = open();
    let epoch = journal.claim().unwrap();
    (journal, epoch)
}

fn write(journal: &dyn Journal, epoch: u64, head: u64, records: &[Record]) {
    let records: Vec<_> = records.iter().cloned().map(Arc::new).collect();
    journal.append(Append { records: &records, documents: &[], expect: Seq(head), epoch }).unwrap();
}

fn records(count: u64) -> Vec<Record> {
    (1..=count).map(record).collect()
}

fn speaking(seq: u64, text: &str) -> Record {
    let origin = Origin {
        principal: text.into(),
        correlation: Some(text.into()),
        chain: Some(text.into()),
        cause: None,
    };
    Record {
        name: text.to_owned().into(),
        subject: text.into(),
        origin: Arc::new(origin),
        data: serde_json::value::to_raw_value(text).unwrap(),
        ..record(seq)
    }
}

fn json(text: &str) -> Box<serde_json::value::RawValue> {
    serde_json::value::RawValue::from_string(text.to_owned()).unwrap()
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

/// All fields of facts as text, so that a difference shows.
fn texts(records: &[Record]) -> String {
    records.iter().fold(String::new(), |mut text, record| {
        writeln!(text, "{record:?}").unwrap();
        text
    })
}

fn read(journal: &dyn Journal, query: &Query) -> String {
    texts(&journal.read(query).unwrap())
}

fn places(journal: &dyn Journal, query: &Query) -> Vec<u64> {
    journal.read(query).unwrap().iter().map(|record| record.seq.0).collect()
}

/// What a query should find, the slow way.
fn wanted(records: &[Record], query: &Query) -> Vec<u64> {
    let mut found: Vec<_> =
        records.iter().filter(|record| query.wants(record)).map(|record| record.seq.0).collect();
    if query.newest_first {
        found.reverse();
    }
    found.truncate(if query.limit == 0 { usize::MAX } else { query.limit });
    found
}

/// A random source that is the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % sides
    }

    fn maybe<T>(&mut self, value: T) -> Option<T> {
        (self.below(3) == 0).then_some(value)
    }

    /// A short text over few characters, so that prefixes and repetitions are common.
    fn text(&mut self) -> String {
        let length = self.below(4);
        (0..length)
            .map(|_| ['a', 'b', ':', '\0', 'é', '\u{10FFFF}'][self.below(6) as usize])
            .collect()
    }

    fn record(&mut self, seq: u64) -> Record {
        let correlation = self.text();
        let origin = Origin { correlation: self.maybe(correlation), ..Origin::default() };
        Record {
            at: Millis(seq / 5),
            name: self.text().into(),
            subject: self.text(),
            origin: Arc::new(origin),
            ..record(seq)
        }
    }

    fn query(&mut self) -> Query {
        let patterns = if self.below(2) == 0 { 0 } else { self.below(12) };
        let pattern = |dice: &mut Self| match dice.below(2) {
            0 => dice.text(),
            _ => dice.text() + "*",
        };
        let (until, since, before) = (self.below(310), self.below(62), self.below(62));
        let (subject, correlation) = (self.text(), self.text());
        Query {
            after: Seq(self.below(300)),
            until: self.maybe(Seq(until)),
            since: self.maybe(Millis(since)),
            before: self.maybe(Millis(before)),
            names: (0..patterns).map(|_| pattern(self)).collect(),
            subjects: self.maybe(subject).into_iter().collect(),
            bytes: 0,
            correlation: self.maybe(correlation),
            newest_first: self.below(2) == 0,
            limit: self.below(20) as usize,
        }
    }
}

fn document(collection: &str, key: &str, sort: u64, text: &str) -> Document {
    let data = serde_json::value::to_raw_value(text).unwrap();
    Document { collection: collection.into(), key: key.into(), sort, data }
}

fn append_with(
    journal: &dyn Journal,
    (epoch, head): (u64, u64),
    documents: &[Document],
) -> Result<(), AppendError> {
    let records = [Arc::new(record(head + 1))];
    journal.append(Append { records: &records, documents, expect: Seq(head), epoch })
}

fn found(journal: &dyn Journal, select: &Select) -> Vec<String> {
    let found = journal.documents(select).unwrap();
    found.iter().map(|one| format!("{} {} {}", one.key, one.sort, one.data)).collect()
}

/// By sort, then by key; each collection for itself.
pub fn documents_are_read_in_their_order_and_the_same_place_replaces(open: Open<'_>) {
    let (journal, epoch) = owned(open);
    let many = [
        document("a", "x", 2, "two"),
        document("a", "z", 1, "one"),
        document("a", "y", 1, "one"),
        document("b", "x", 9, "other"),
    ];
    append_with(&*journal, (epoch, 0), &many).unwrap();
    append_with(&*journal, (epoch, 1), &[document("a", "x", 3, "again")]).unwrap();
    let journal = open();
    let all = [r#"y 1 "one""#, r#"z 1 "one""#, r#"x 3 "again""#];
    assert_eq!(found(&*journal, &Select::all("a")), all);
    assert_eq!(found(&*journal, &Select::one("a", "z")), all[1..2]);
    assert_eq!(found(&*journal, &Select::all("c")), [""; 0]);
    let last = Select { last_first: true, limit: 2, ..Select::all("a") };
    assert_eq!(found(&*journal, &last), [all[2], all[1]]);
    assert_eq!(found(&*journal, &Select { offset: 1, ..last }), [all[1], all[0]]);
    assert_eq!(found(&*journal, &Select { offset: 2, ..Select::all("a") }), all[2..]);
}

/// What is refused leaves no document behind.
pub fn a_document_is_written_with_its_facts_or_not_at_all(open: Open<'_>) {
    let (journal, epoch) = owned(open);
    let one = [document("a", "x", 1, "one")];
    assert!(append_with(&*journal, (epoch + 1, 0), &one).is_err());
    assert_eq!(found(&*journal, &Select::all("a")), [""; 0]);
    append_with(&*journal, (epoch, 0), &one).unwrap();
    assert_eq!(found(&*journal, &Select::all("a")).len(), 1);
}

/// A restart finds the last one that was kept.
pub fn the_newest_snapshot_comes_back_as_it_was_kept(open: Open<'_>) {
    let (journal, epoch) = owned(open);
    assert!(journal.snapshot().unwrap().is_empty());
    append(&*journal, epoch, 0, 30).unwrap();
    for seq in [10, 20, 30] {
        let state = serde_json::to_string(&format!("\u{0}\n{seq}")).unwrap();
        let section = Section { seq: Seq(seq), at: Millis(1_000 + seq), version: 3, state };
        let old = Section { seq: Seq(5), ..section.clone() };
        let snapshot = [("well".to_owned(), section), ("degraded".to_owned(), old)];
        journal.keep(&Snapshot::from(snapshot)).unwrap();
    }
    let snapshot = open().snapshot().unwrap();
    let told = |name: &str| {
        let Section { seq, at, version, state } = &snapshot[name];
        format!("{} {} {version} {state}", seq.0, at.0)
    };
    assert_eq!(told("well"), r#"30 1030 3 "\u0000\n30""#);
    assert_eq!(told("degraded"), r#"5 1030 3 "\u0000\n30""#);
    assert_eq!(snapshot.len(), 2);
}
