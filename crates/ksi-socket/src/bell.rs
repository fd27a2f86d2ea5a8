//! A bell: what wakes a task through it says that it did.

use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Wake, Waker},
};

use parking_lot::Mutex;

/// Wakes a task on behalf of futures that need not be polled unless one of them has called.
pub(crate) struct Bell {
    /// Whom it wakes; none once it has rung, until it is asked.
    task: Mutex<Option<Waker>>,
    /// Whether it has rung, to be read without the lock.
    rung: AtomicBool,
}

impl Bell {
    /// A bell that has rung.
    pub(crate) fn new() -> Self {
        Bell { task: Mutex::new(None), rung: AtomicBool::new(true) }
    }

    /// Whether it rang since it was last asked; if so, it wakes the task that asks from now on.
    ///
    /// The task must always be the same: a bell that has not rung keeps whom it has.
    pub(crate) fn has_rung(&self, cx: &Context<'_>) -> bool {
        if !self.rung.load(Ordering::Acquire) {
            return false;
        }
        let mut task = self.task.lock();
        *task = Some(cx.waker().clone());
        self.rung.store(false, Ordering::Release);
        true
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut task = self.task.lock();
        self.rung.store(true, Ordering::Release);
        let whom = mem::take(&mut *task);
        drop(task);
        whom.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::AtomicUsize,
        thread::{self, Thread},
    };

    use super::*;

    #[test]
    fn it_wakes_who_asked_when_it_had_rung_and_rings_once() {
        let [task, bell] = [(); 2].map(|()| Arc::new(Bell::new()));
        let [task_waker, bell_waker] = [&task, &bell].map(|bell| Waker::from(bell.clone()));
        let (asking, idle) = (Context::from_waker(&task_waker), Context::from_waker(Waker::noop()));
        assert!(task.has_rung(&idle), "a new one has");
        assert!(bell.has_rung(&asking));
        assert!(!bell.has_rung(&idle) && !task.has_rung(&idle));
        for _ in 0..2 {
            bell_waker.wake_by_ref();
            bell_waker.wake_by_ref();
            assert!(task.has_rung(&idle), "whoever asked it is woken");
            assert!(!task.has_rung(&idle));
            assert!(bell.has_rung(&asking) && !bell.has_rung(&asking));
        }
    }

    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    #[test]
    fn whoever_rings_while_it_is_asked_is_heard() {
        const LAST: usize = 100_000;
        let (bell, news) = (Arc::new(Bell::new()), AtomicUsize::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                for n in 1..=LAST {
                    news.store(n, Ordering::Release);
                    bell.wake_by_ref();
                }
            });
            let task = Waker::from(Arc::new(Unpark(thread::current())));
            let mut heard = 0;
            while heard < LAST {
                match bell.has_rung(&Context::from_waker(&task)) {
                    true => heard = news.load(Ordering::Acquire),
                    false => thread::park(),
                }
            }
        });
    }
}
