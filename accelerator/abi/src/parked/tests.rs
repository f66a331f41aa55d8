//! Writers, readers and closes in any order: the sum is always that of the readers, and within its limits.

extern crate std;

use std::vec::Vec;

use proptest::prelude::*;

use super::*;

const READERS: usize = 6;
/// More than one reader's share, so that the budget can be spent.
const MAX_MESSAGE_BYTES: u32 = 1 << 21;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A writer's program runs; its message waits for the queue.
    Charge(usize, u32),
    /// The message reaches the queue.
    Arrive(usize),
    /// The kernel refuses the message.
    Refuse(usize),
    /// The reader reads everything.
    Drain(usize),
    /// The reader writes, and its program looks at its own queue.
    Answer(usize),
    /// The reader closes.
    Close(usize),
}

#[derive(Default)]
struct Reader {
    parked: Parked,
    queued: Vec<u32>,
    on_its_way: Option<u32>,
}

impl Reader {
    fn queued_bytes(&self) -> u32 {
        self.queued.iter().sum()
    }
}

#[derive(Default)]
struct Pod {
    sum: ParkedSum,
    readers: [Reader; READERS],
}

impl Pod {
    fn apply(&mut self, step: Step) {
        let sum = &mut self.sum;
        match step {
            Step::Charge(at, size) => {
                let reader = &mut self.readers[at];
                // The writer's lock: its messages do not overtake each other.
                if reader.on_its_way.is_none() {
                    let queued = reader.queued_bytes();
                    if reader.parked.charge(sum, queued, size).is_ok() {
                        assert!(sum.bytes <= MAX_PARKED_BYTES_PER_POD);
                        assert!(sum.messages <= MAX_PARKED_MESSAGES_PER_POD);
                        reader.on_its_way = Some(size);
                    }
                }
            }
            Step::Arrive(at) => {
                let reader = &mut self.readers[at];
                if let Some(size) = reader.on_its_way.take()
                    && reader.parked.is_closed == 0
                {
                    reader.queued.push(size);
                }
            }
            Step::Refuse(at) => {
                let reader = &mut self.readers[at];
                if let Some(size) = reader.on_its_way.take() {
                    reader.parked.refund(sum, size);
                }
            }
            Step::Drain(at) => self.readers[at].queued.clear(),
            Step::Answer(at) => {
                let reader = &mut self.readers[at];
                if reader.queued.is_empty() {
                    reader.parked.settle(sum, 0);
                }
            }
            Step::Close(at) => {
                let reader = &mut self.readers[at];
                reader.queued.clear();
                reader.parked.close(sum);
            }
        }
    }

    fn check(&self) {
        let charged = |field: fn(&Parked) -> u32| -> u64 {
            let all = self.readers.iter().map(|reader| field(&reader.parked));
            all.map(u64::from).sum()
        };
        assert_eq!(self.sum.bytes, charged(|parked| parked.bytes));
        assert_eq!(self.sum.messages, charged(|parked| parked.messages));
        let there: u64 = self
            .readers
            .iter()
            .map(|reader| u64::from(reader.queued_bytes()))
            .sum();
        let slack = READERS as u64 * u64::from(MAX_MESSAGE_BYTES);
        assert!(
            there <= MAX_PARKED_BYTES_PER_POD + slack,
            "{there} bytes lie there"
        );
    }
}

fn step() -> impl Strategy<Value = Step> {
    let at = 0..READERS;
    prop_oneof![
        4 => (at.clone(), 1..MAX_MESSAGE_BYTES).prop_map(|(at, size)| Step::Charge(at, size)),
        4 => at.clone().prop_map(Step::Arrive),
        1 => at.clone().prop_map(Step::Refuse),
        1 => at.clone().prop_map(Step::Drain),
        1 => at.clone().prop_map(Step::Answer),
        1 => at.prop_map(Step::Close),
    ]
}

proptest! {
    #[test]
    fn the_sum_is_that_of_the_readers_and_bounds_what_lies_there(
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut pod = Pod::default();
        for step in steps {
            pod.apply(step);
            pod.check();
        }
        for at in 0..READERS {
            pod.apply(Step::Close(at));
        }
        prop_assert_eq!(pod.sum, ParkedSum::default());
    }
}

#[test]
fn a_reader_may_have_so_many_messages_and_a_pod_so_many() {
    let mut sum = ParkedSum::default();
    let mut readers = [Parked::new(7); 16];
    for reader in &mut readers {
        let taken = (0..MAX_PARKED_MESSAGES).all(|sent| reader.charge(&mut sum, sent, 1).is_ok());
        let is_spent = sum.messages == MAX_PARKED_MESSAGES_PER_POD;
        let refusal = reader.charge(&mut sum, reader.bytes, 1);
        assert_eq!(refusal, Err(PassReason::TooManyParked));
        assert!(taken);
        if is_spent {
            break;
        }
    }
    let mut another = Parked::new(7);
    assert_eq!(
        another.charge(&mut sum, 0, 1),
        Err(PassReason::PodBudgetSpent)
    );
    readers[0].settle(&mut sum, 0);
    assert_eq!(another.charge(&mut sum, 0, 1), Ok(()));
}

#[test]
fn a_reader_that_wants_to_leave_takes_no_more() {
    let mut sum = ParkedSum::default();
    let mut reader = Parked::new(7);
    assert_eq!(reader.charge(&mut sum, 0, 10), Ok(()));
    reader.leave = reader.leave.with(Leave::IS_SAFE);
    assert_eq!(reader.charge(&mut sum, 10, 10), Ok(()));
    reader.leave = reader.leave.with(Leave::IS_WANTED);
    let before = sum;
    assert_eq!(
        reader.charge(&mut sum, 20, 10),
        Err(PassReason::ReaderLeaves)
    );
    assert_eq!(sum, before);
    assert!(reader.leave.has(Leave::IS_SAFE));
}
