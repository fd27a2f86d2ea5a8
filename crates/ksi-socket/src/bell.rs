//! A bell: what wakes a task through it says that it did.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use std::task::{Context, Wake};

use futures_util::task::AtomicWaker;

/// Wakes a task on behalf of futures that need not be polled unless one of them has called.
#[derive(Default)]
pub(crate) struct Bell {
    rung: AtomicBool,
    task: AtomicWaker,
}

impl Bell {
    /// Whether it rang since it was last asked; from now on it wakes the task that asks.
    pub(crate) fn has_rung(&self, cx: &Context<'_>) -> bool {
        self.task.register(cx.waker());
        self.rung.swap(false, Ordering::AcqRel)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.task.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn it_wakes_who_asked_last_and_has_rung_once() {
        let [task, first, bell] = [(); 3].map(|()| Arc::new(Bell::default()));
        let wakers = [&first, &task, &bell].map(|bell| Waker::from(bell.clone()));
        let [first_waker, task_waker, bell_waker] = &wakers;
        assert!(!bell.has_rung(&Context::from_waker(first_waker)));
        assert!(!bell.has_rung(&Context::from_waker(task_waker)));
        bell_waker.wake_by_ref();
        let idle = Context::from_waker(Waker::noop());
        assert!(task.has_rung(&idle) && !first.has_rung(&idle));
        assert!(bell.has_rung(&idle));
        assert!(!bell.has_rung(&idle));
    }
}
