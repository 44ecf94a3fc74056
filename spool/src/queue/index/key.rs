//! Message ids and due times in 16 bytes: with a million messages, three times as much is felt.

use crate::{
    env::UnixMs,
    queue::message::{MessageId, Turn},
};

/// Bits of a second and of a counter: both are below 62^6.
const PART_BITS: u32 = 36;

/// Bits of a node's number, below 62^2.
const NODE_BITS: u32 = 12;

/// Bits of an id.
const ID_BITS: u32 = 2 * PART_BITS + NODE_BITS;

/// Bits of a time; one more tells the turns apart.
const DUE_BITS: u32 = u128::BITS - ID_BITS - 1;

/// The last time that can be told apart from later ones: in the year 2248.
const DUE_MAX: u64 = (1 << DUE_BITS) - 1;

/// An id, in the order of ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::queue) struct Key(u128);

/// An id with its turn and when it is due, in the order of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Due(u128);

const fn low(value: u128, bits: u32) -> u64 {
    // At most 64 bits are left.
    (value & ((1 << bits) - 1)) as u64
}

impl Key {
    /// Behind all.
    pub(super) const MAX: Self = Self((1 << ID_BITS) - 1);

    /// `None` for an id that cannot be written as a text; no entry of the log has such a one.
    pub(in crate::queue) fn of(id: MessageId) -> Option<Self> {
        id.is_writable().then(|| {
            let time = u128::from(id.second) << PART_BITS | u128::from(id.counter);
            Self(time << NODE_BITS | u128::from(id.node))
        })
    }

    pub(in crate::queue) fn id(self) -> MessageId {
        MessageId {
            second: low(self.0 >> (NODE_BITS + PART_BITS), PART_BITS),
            counter: low(self.0 >> NODE_BITS, PART_BITS),
            // Twelve bits.
            node: low(self.0, NODE_BITS) as u16,
        }
    }
}

impl Key {
    /// The key in a checkpoint; `None` if it is none.
    pub(super) fn read(bytes: [u8; 16]) -> Option<Self> {
        let key = Self(u128::from_be_bytes(bytes));
        (key <= Self::MAX && key.id().is_writable()).then_some(key)
    }

    pub(super) fn write(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

impl Due {
    pub(super) fn new(turn: Turn, due: UnixMs, key: Key) -> Self {
        let turn = u128::from(turn == Turn::Again);
        Self((turn << DUE_BITS | u128::from(due.0.min(DUE_MAX))) << ID_BITS | key.0)
    }

    /// Before all of a turn.
    pub(super) fn first_of(turn: Turn) -> Self {
        Self(Self::new(turn, UnixMs(0), Key::MAX).0 & !Key::MAX.0)
    }

    /// Behind all of a turn that are due at `now`.
    pub(super) fn last_at(turn: Turn, now: UnixMs) -> Self {
        Self::new(turn, now, Key::MAX)
    }

    pub(super) const fn due(self) -> UnixMs {
        UnixMs((self.0 >> ID_BITS) as u64 & DUE_MAX)
    }

    pub(super) const fn key(self) -> Key {
        Key(self.0 & Key::MAX.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::NODE_IN_ID_MAX;

    const LAST: MessageId = MessageId {
        second: 62_u64.pow(6) - 1,
        counter: 62_u64.pow(6) - 1,
        node: NODE_IN_ID_MAX as u16,
    };

    #[test]
    fn ids_come_back_in_order() {
        let first = MessageId { second: 0, counter: 0, node: 0 };
        let ids = [
            first,
            MessageId { node: 3843, ..first },
            MessageId { counter: 1, ..first },
            MessageId { counter: LAST.counter, ..LAST },
        ];
        for pair in ids.windows(2) {
            assert!(Key::of(pair[0]) < Key::of(pair[1]));
        }
        for id in ids {
            let key = Key::of(id).unwrap();
            assert_eq!(key.id(), id);
        }
        assert!(Key::of(LAST).unwrap() < Key::MAX);
        assert_eq!(Key::of(MessageId { second: LAST.second + 1, ..LAST }), None);
        assert_eq!(Key::of(MessageId { node: LAST.node + 1, ..LAST }), None);
    }

    #[test]
    fn turns_and_due_times_come_first() {
        let key = Key::of(LAST).unwrap();
        for turn in [Turn::First, Turn::Again] {
            let due = Due::new(turn, UnixMs(1_900_000_000_123), key);
            assert_eq!((due.due(), due.key()), (UnixMs(1_900_000_000_123), key));
            assert!(due < Due::last_at(turn, UnixMs(1_900_000_000_123)));
            assert!(due > Due::last_at(turn, UnixMs(1_900_000_000_122)));
            assert!(due > Due::first_of(turn));
            assert_eq!(Due::new(turn, UnixMs(u64::MAX), key).due(), UnixMs(DUE_MAX));
        }
        assert!(Due::last_at(Turn::First, UnixMs(u64::MAX)) < Due::first_of(Turn::Again));
    }
}
