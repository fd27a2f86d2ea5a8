//! Random runs with crashes and full disks.

use ksi_runtime::world::World;
use ksi_state::Journal;

use crate::depot::Jobs;

#[test]
fn many_small_drives_end_where_one_full_drive_ends_for_1000_seeds() {
    let (mut facts, mut failures) = (0, 0);
    for seed in 0..1_000 {
        let world = World::play(&Jobs::default(), seed, 120);
        facts += world.journal().head().expect("a journal in memory").0;
        failures += world.failures();
    }
    assert!(facts > 10_000 && failures > 1_000, "too quiet: {facts} facts, {failures} failures");
}

#[test]
fn the_same_seed_gives_the_same_journal() {
    let journal = |seed| {
        let world = World::play(&Jobs::default(), seed, 200);
        let records = world.journal().read(&Default::default()).expect("a journal in memory");
        records.iter().map(|r| format!("{} {} {} {}", r.seq, r.at.0, r.name, r.data)).collect()
    };
    let (one, again, other): (Vec<_>, Vec<_>, Vec<_>) = (journal(7), journal(7), journal(8));
    assert!(one.len() > 10, "{one:?}");
    assert_eq!(one, again);
    assert_ne!(one, other);
}

#[test]
#[should_panic(expected = "memory differs from a fold of the whole journal")]
fn a_fold_that_forgets_to_touch_what_it_freed_is_found() {
    for seed in 0..1_000 {
        World::play(&Jobs { careless: true }, seed, 120);
    }
}
