//! How much a count of zero shows.

use statrs::distribution::{Beta, ContinuousCDF as _};

/// The one-sided 95 % upper bound of a share of which `hits` in `trials` were seen (Clopper and
/// Pearson, *Biometrika* 1934). 1 when nothing was tried.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts here stay far below 2^52")]
pub fn upper_95(hits: u64, trials: u64) -> f64 {
    if hits >= trials {
        return 1.0;
    }
    if hits == 0 {
        // The Beta distribution's quantile has this closed form for no hits.
        return 1.0 - 0.05_f64.powf(1.0 / trials as f64);
    }
    Beta::new((hits + 1) as f64, (trials - hits) as f64).map_or(1.0, |beta| beta.inverse_cdf(0.95))
}

/// A share as a person reads it: `≤ 3.0e-4`.
#[must_use]
pub fn text(share: f64) -> String {
    format!("≤ {share:.1e}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_of_n_is_at_most_three_over_n() {
        for trials in [100_u64, 1_000, 1_000_000] {
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let three = 3.0 / trials as f64;
            let bound = upper_95(0, trials);
            assert!(bound < three && bound > 0.97 * three, "{bound} of {trials}");
        }
    }

    #[test]
    fn hits_raise_the_bound_continuously() {
        assert!(upper_95(1, 1_000) > upper_95(0, 1_000));
        assert!(upper_95(2, 1_000) > upper_95(1, 1_000));
        // 1 of 100: 4.66 % by the tables.
        assert!((upper_95(1, 100) - 0.0466).abs() < 0.0005);
    }

    #[test]
    fn nothing_tried_shows_nothing() {
        assert!((upper_95(0, 0) - 1.0).abs() < f64::EPSILON);
        assert!((upper_95(5, 5) - 1.0).abs() < f64::EPSILON);
    }
}
