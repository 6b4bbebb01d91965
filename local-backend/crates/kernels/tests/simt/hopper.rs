//! Hopper's own kernels on the CPU: the check of the start, which compares them with the plain ones, and through it their barriers,
//! copies and multiplies, as early and as late as they may be.

use super::{ORDERS, driver, ops};
use kernels::cuda::{Kernels, Precision, Way, choose};

#[test]
fn they_agree_with_the_plain_kernels_in_every_order() {
    for order in ORDERS {
        let ops = ops(order, Precision::Fast);
        let choice = choose(driver(&ops), Kernels::Auto).unwrap_or_else(|error| panic!("{order:?}: {error}"));
        println!("{order:?}: {}", choice.why);
        assert_eq!(choice.ways.multiply, Way::Hopper, "{order:?}: {}", choice.why);
        assert_eq!(choice.ways.attend, Way::Hopper, "{order:?}: {}", choice.why);
    }
}

#[test]
fn plain_ones_are_taken_when_asked_for() {
    let ops = ops(ORDERS[0], Precision::Fast);
    let choice = choose(driver(&ops), Kernels::Plain).unwrap();
    assert_eq!(choice.ways, kernels::cuda::Ways::default());
    assert!(choice.why.contains("as asked for"), "{}", choice.why);
}
