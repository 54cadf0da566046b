//! Log-linear histograms as Envoy has them: bins of two significant digits, so that any value is known to within ten
//! percent (the layout and the formulas are libcircllhist's).
//!
//! Pure arithmetic over bins; who counted and where is the business of `cells`.

/// 90 bins for each of the 20 decades a `u64` can have.
pub(super) const BINS: usize = 90 * 20;

/// The quantiles that every rendering shows.
pub(super) const QUANTILES: [f64; 10] = [0.0, 0.25, 0.5, 0.75, 0.90, 0.95, 0.99, 0.995, 0.999, 1.0];

/// Upper bounds of the default buckets, in the histogram's own unit (Envoy's, made for milliseconds).
pub(super) const DEFAULT_BUCKETS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

const POWERS: [u64; 20] = {
    let mut powers = [1; 20];
    let mut i = 1;
    while i < 20 {
        powers[i] = powers[i - 1] * 10;
        i += 1;
    }
    powers
};

/// 2^64 over the divisor of a decade, rounded up: for values below 2^32 the upper half of the product is the quotient.
/// Exact, because such a value times the rounding (less than the divisor) stays below 2^64.
const RECIPROCALS: [u64; 10] = {
    let mut reciprocals = [0; 10];
    let mut decade = 2;
    while decade < 10 {
        reciprocals[decade] = u64::MAX / POWERS[decade - 1] + 1;
        decade += 1;
    }
    reciprocals
};

/// The bin of a value: decade times 90 plus the two leading digits less 10; `None` is the bin of zero.
#[inline]
pub(super) fn bin_of(value: u64) -> Option<usize> {
    let (decade, digits) = match value {
        0 => return None,
        1..=9 => (0, value * 10),
        10..=99 => (1, value),
        // A division costs more than all the rest of counting a value.
        100..=0xffff_ffff => {
            let decade = (value as u32).ilog10() as usize;
            (decade, ((u128::from(value) * u128::from(RECIPROCALS[decade])) >> 64) as u64)
        }
        _ => {
            let decade = value.ilog10() as usize;
            (decade, value / POWERS[decade - 1])
        }
    };
    Some(decade * 90 + digits as usize - 10)
}

/// Counts by bin, empty bins left out, ascending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Bins {
    pub zero: u64,
    pub counts: Vec<(u16, u64)>,
}

impl Bins {
    pub fn total(&self) -> u64 {
        self.zero + self.counts.iter().map(|(_, n)| n).sum::<u64>()
    }

    /// What was counted since `earlier`, an older state of the same histogram.
    pub fn since(&self, earlier: &Bins) -> Bins {
        let mut old = earlier.counts.iter().peekable();
        let counts = self.counts.iter().filter_map(|(bin, n)| {
            while old.next_if(|(b, _)| b < bin).is_some() {}
            let before = old.next_if(|(b, _)| b == bin).map_or(0, |(_, n)| *n);
            let n = n.saturating_sub(before);
            (n > 0).then_some((*bin, n))
        });
        Bins { counts: counts.collect(), zero: self.zero.saturating_sub(earlier.zero) }
    }
}

/// One bin in the histogram's own unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bin {
    pub left: f64,
    pub width: f64,
    pub count: u64,
}

/// Bins at their scale: what renderings are made from.
pub(super) struct Distribution(Vec<Bin>);

impl Distribution {
    /// `scale` is the power of ten from a counted value to the unit shown: -3 when microseconds are shown in milliseconds.
    pub fn new(bins: &Bins, scale: i32) -> Distribution {
        let zero = (bins.zero > 0).then_some(Bin { left: 0.0, width: 0.0, count: bins.zero });
        let rest = bins.counts.iter().map(|(bin, count)| {
            let exponent = i32::from(bin / 90) + scale;
            let power = power_of_ten(exponent);
            Bin { left: f64::from(bin % 90 + 10) / 10.0 * power, width: power / 10.0, count: *count }
        });
        Distribution(zero.into_iter().chain(rest).collect())
    }

    pub fn bins(&self) -> &[Bin] {
        &self.0
    }

    pub fn total(&self) -> u64 {
        self.0.iter().map(|bin| bin.count).sum()
    }

    /// The sum as the bins tell it. A bin counts at the point that makes the relative error smallest.
    pub fn sum(&self) -> f64 {
        self.0.iter().fold(0.0, |sum, bin| {
            let ratio = if bin.width == 0.0 { 0.0 } else { bin.left / (bin.left + (bin.left + bin.width)) };
            sum + (bin.left + bin.width * ratio) * bin.count as f64
        })
    }

    /// Samples in all bins up to and including the one that holds `bound`.
    pub fn count_below(&self, bound: f64) -> u64 {
        // The left edge and the bound are both roundings of the same decimal when they are equal: leave room for one ulp.
        let bound = bound * (1.0 + f64::EPSILON);
        self.0.iter().take_while(|bin| bin.left <= bound).map(|bin| bin.count).sum()
    }

    /// The values at [`QUANTILES`]; NaN when there is no sample. The n samples of a bin are taken to lie evenly in it.
    pub fn quantiles(&self) -> [f64; QUANTILES.len()] {
        let total = self.total() as f64;
        let Some(mut bin) = self.0.first().copied() else { return [f64::NAN; QUANTILES.len()] };
        let mut rest = self.0[1..].iter();
        let (mut lower, mut upper) = (0.0, bin.count as f64);
        QUANTILES.map(|q| {
            let rank = total * q;
            while upper < rank {
                let Some(next) = rest.next() else { break };
                bin = *next;
                lower = upper;
                upper += bin.count as f64;
            }
            let k = (rank - lower).ceil().max(1.0);
            if bin.width == 0.0 { bin.left } else { bin.left + k / (bin.count as f64 + 1.0) * bin.width }
        })
    }
}

/// Powers of ten as the literals are: `powi` of a negative exponent is exact only by luck.
fn power_of_ten(exponent: i32) -> f64 {
    const POWERS: [f64; 27] = [
        1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13,
        1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    ];
    usize::try_from(exponent + 6).ok().and_then(|at| POWERS.get(at)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[(u64, u64)]) -> Distribution {
        let mut bins = Bins::default();
        for (value, count) in values {
            match bin_of(*value) {
                None => bins.zero += count,
                Some(bin) => bins.counts.push((bin as u16, *count)),
            }
        }
        bins.counts.sort_unstable();
        Distribution::new(&bins, 0)
    }

    #[test]
    fn every_value_has_a_bin_of_two_digits() {
        assert_eq!(bin_of(0), None);
        assert_eq!(bin_of(1), Some(0));
        assert_eq!(bin_of(9), Some(80));
        assert_eq!(bin_of(10), Some(90));
        assert_eq!(bin_of(19), Some(99));
        assert_eq!(bin_of(199), bin_of(190));
        for decade in 0..20_u32 {
            for digits in 10..100_u64 {
                let edge = u128::from(digits) * 10_u128.pow(decade) / 10;
                let Ok(edge) = u64::try_from(edge) else { continue };
                let bin = decade as usize * 90 + digits as usize - 10;
                if decade > 0 || digits.is_multiple_of(10) {
                    assert_eq!(bin_of(edge), Some(bin), "{edge}");
                    assert!(bin_of(edge - 1).is_none_or(|below| below < bin), "below {edge}");
                }
            }
        }
        assert_eq!(bin_of(u64::MAX), Some(19 * 90 + 18 - 10));
    }

    /// 29 samples seen by Envoy: 26 zeros, one 1, one 48, one 50.
    #[test]
    fn sums_and_quantiles_are_those_of_envoy() {
        let d = of(&[(0, 26), (1, 1), (48, 1), (50, 1)]);
        assert_eq!(d.sum(), 100.037_513_913_394_29);
        assert_eq!(d.quantiles(), [0.0, 0.0, 0.0, 0.0, 1.05, 48.5, 50.5, 50.5, 50.5, 50.5]);
        assert_eq!([0.5, 1.0, 25.0, 50.0].map(|b| d.count_below(b)), [26, 27, 27, 29]);
        // 51 tenths times a hundred is a little less than 510.
        assert_eq!(of(&[(517, 4)]).quantiles()[2], 514.0);
        assert_eq!(of(&[(517, 4)]).bins()[0].left, 509.999_999_999_999_94);
    }

    #[test]
    fn microseconds_are_shown_in_milliseconds() {
        let bins = Bins { zero: 0, counts: vec![(bin_of(1_500).expect("not zero") as u16, 2)] };
        let d = Distribution::new(&bins, -3);
        assert_eq!(d.bins(), [Bin { left: 1.5, width: 0.1, count: 2 }]);
        assert_eq!(d.count_below(1.0), 0);
        assert_eq!(d.count_below(5.0), 2);
    }

    #[test]
    fn an_interval_is_the_difference() {
        let old = Bins { zero: 1, counts: vec![(3, 4), (90, 1)] };
        let new = Bins { zero: 1, counts: vec![(3, 6), (40, 1), (90, 1)] };
        assert_eq!(new.since(&old), Bins { zero: 0, counts: vec![(3, 2), (40, 1)] });
    }
}
