//! Where a stored message lies: the name of its place, by which all of the outbox knows it.

/// Place of a stored message: segment and number in it. Later ones are larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Segment tree, see `store`.
    pub segment: u32,
    /// Number in it.
    pub n: u32,
}

impl Key {
    /// The key of a place.
    pub fn at(place: u64) -> Self {
        Self { segment: (place >> 32) as u32, n: place as u32 }
    }

    /// As one number; later ones are larger.
    pub fn place(self) -> u64 {
        u64::from(self.segment) << 32 | u64::from(self.n)
    }

    /// This place's share of the digest of all places (the finalizer of splitmix64): every bit of it depends on every bit
    /// of the place.
    pub fn fold(self) -> u64 {
        let mut x = self.place().wrapping_add(0x9E37_79B9_7F4A_7C15);
        x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ x >> 31
    }

    /// A key for tests of what only passes keys on.
    #[cfg(test)]
    pub fn test(n: u32) -> Self {
        Self { segment: 0, n }
    }
}
