//! What runs once an orchestration has ended.

use ksi_kernel::{Caller, Event};
use serde_json::{json, value::to_raw_value};

use super::{Daemon, SECOND_HANGS};

/// On one thread, which this test does not give up between the moment in which the end is durable
/// and its question: nothing that runs can have returned by then.
#[tokio::test]
async fn when_the_end_is_durable_nothing_of_it_runs_any_more() {
    let mut daemon = Daemon::start(SECOND_HANGS);
    let id = daemon.debate(1).await;
    daemon.hear("orchestration:turn_taken").await;
    daemon.hear("completion:started").await;
    assert_eq!(daemon.kernel.effects().running(), 2, "the turn and its completion");
    let data = to_raw_value(&json!({ "orchestration_id": id })).unwrap();
    let call = daemon.kernel.call(Caller::operator(), "orchestration:terminate", data);
    daemon.kernel.tasks().spawn("call", call);
    daemon.hear("orchestration:end_requested").await;
    let is_cancelled = |event: &Event| event.name() == "completion:cancelled";
    let last = daemon.next(|event| is_cancelled(event).then(|| event.seq())).await.unwrap();
    while daemon.kernel.position().0 == last {
        tokio::task::yield_now().await;
    }
    while daemon.kernel.position().1 == last {
        std::hint::spin_loop();
    }
    assert_eq!(daemon.kernel.effects().running(), 0, "it has ended");
    assert_eq!(daemon.instance(&id).await["status"], "terminated");
}
