//! What an operation of the ring belongs to, as the 64 bits that travel with it.

/// The owner of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    /// Nobody waits: cancellations.
    Ignore,
    /// The bell of the reactor.
    Bell,
    /// An armed poll, by its key.
    Readiness(u32),
    /// An operation on a file, by its slot.
    Operation(u32),
}

impl Token {
    pub(super) fn encode(self) -> u64 {
        let (kind, key) = match self {
            Self::Ignore => (0, 0),
            Self::Bell => (1, 0),
            Self::Readiness(key) => (2, key),
            Self::Operation(slot) => (3, slot),
        };
        kind << 32 | u64::from(key)
    }

    pub(super) fn decode(user_data: u64) -> Option<Self> {
        let key = user_data as u32;
        match user_data >> 32 {
            0 => Some(Self::Ignore),
            1 => Some(Self::Bell),
            2 => Some(Self::Readiness(key)),
            3 => Some(Self::Operation(key)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_survives_the_ring() {
        for token in [
            Token::Ignore,
            Token::Bell,
            Token::Readiness(0),
            Token::Readiness(u32::MAX),
            Token::Operation(7),
        ] {
            assert_eq!(Token::decode(token.encode()), Some(token));
        }
        assert_eq!(Token::decode(4 << 32), None);
    }
}
