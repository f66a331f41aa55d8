//! What happens on one connection, drawn from a seed. On plain TCP every scenario has one outcome only.

/// Largest of the usual messages, in bytes.
const USUAL_BYTES: u64 = 4_000;
/// Largest of the rare ones: more than a reader's buffer, so that the writer is stopped.
const RARE_BYTES: u64 = 400_000;
/// One direction in so many is a bulk transfer, which takes both ends out of the sockmap.
const BULK_ONE_IN: u64 = 1_000;
/// Its messages, each of which the kernel takes in several.
const BULK_MESSAGES: u32 = 12;
/// Receive buffer that a small one gets: the kernel doubles it.
const SMALL_RCVBUF: libc::c_int = 4_096;

/// Numbers that look random: splitmix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        let at = self.below(all.len() as u64);
        all[usize::try_from(at).expect("an index")]
    }
}

/// How the accepting end listens, and the other connects.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Listener {
    Plain,
    DeferAccept,
    FastOpen,
}

/// When the accepting end starts to read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Reader {
    Prompt,
    /// When the writer has written all of it, or can write no more.
    Late,
}

/// Who writes when.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Exchange {
    /// First all messages one way, then all the other way.
    InTurns,
    /// Both ends at the same time.
    Duplex,
}

/// How the connection ends, after all messages have been read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ending {
    /// The connecting end closes.
    Close,
    /// It closes its half, gets another answer, and then the end.
    HalfClose,
    /// The accepting end closes; what is then written to it meets a reset.
    AcceptorCloses,
    /// The connecting end resets.
    Reset,
    /// It writes once more and resets before that is read.
    ResetUnread,
    /// It writes once more, and the accepting end closes without reading that.
    CloseUnread,
}

/// One connection.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    /// Seed of everything else, and of the bytes.
    pub(crate) seed: u64,
    pub(crate) listener: Listener,
    pub(crate) reader: Reader,
    pub(crate) rcvbuf: Option<libc::c_int>,
    pub(crate) exchange: Exchange,
    /// Sizes of the messages from the connecting end, the first of them before anything else.
    pub(crate) up: Vec<usize>,
    /// Sizes of the messages to the connecting end.
    pub(crate) down: Vec<usize>,
    pub(crate) ending: Ending,
}

impl Scenario {
    pub(crate) fn draw(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        Self {
            seed,
            listener: dice.one_of(&[
                Listener::Plain,
                Listener::Plain,
                Listener::DeferAccept,
                Listener::FastOpen,
            ]),
            reader: dice.one_of(&[Reader::Prompt, Reader::Late]),
            rcvbuf: dice.one_of(&[None, None, None, Some(SMALL_RCVBUF)]),
            exchange: dice.one_of(&[Exchange::InTurns, Exchange::Duplex]),
            // Deferred and fast-opened connections begin with data.
            up: sizes(&mut dice, 1),
            down: sizes(&mut dice, 0),
            ending: dice.one_of(&[
                Ending::Close,
                Ending::Close,
                Ending::HalfClose,
                Ending::HalfClose,
                Ending::AcceptorCloses,
                Ending::Reset,
                Ending::ResetUnread,
                Ending::CloseUnread,
            ]),
        }
    }
}

fn sizes(dice: &mut Dice, at_least: u64) -> Vec<usize> {
    if dice.below(BULK_ONE_IN) == 0 {
        let large = |_| usize::try_from(RARE_BYTES - dice.below(USUAL_BYTES)).expect("a size");
        return (0..BULK_MESSAGES).map(large).collect();
    }
    let count = at_least + dice.below(8);
    let size = |_| {
        let bound = match dice.below(64) {
            0 => RARE_BYTES,
            1..32 => 64,
            _ => USUAL_BYTES,
        };
        usize::try_from(1 + dice.below(bound)).expect("a size")
    };
    (0..count).map(size).collect()
}
