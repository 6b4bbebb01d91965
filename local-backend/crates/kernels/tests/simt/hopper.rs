//! Hopper's own kernels on the CPU: the check of the start, which compares them with the plain ones, and through it their barriers,
//! copies and multiplies, as early and as late as they may be.

use super::{ORDERS, driver, ops};
use kernels::cuda::{Kernels, Order, Precision, Simt, Way, Ways, choose};
use std::path::Path;

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
    assert_eq!(choice.ways, Ways::default());
    assert!(choice.why.contains("as asked for"), "{}", choice.why);
}

/// A stage of the multiply that is given back while it is read, and a wrong distance in the values' descriptor.
#[test]
fn kernels_with_mistakes_are_not_taken() {
    let changes = [
        ("if (step > 0) ring.give_back(step - 1);", "ring.give_back(step);"),
        (
            "operand(values + step * 2048, KEYS * 128)",
            "operand(values + step * 2048, KEYS * 64)",
        ),
    ];
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let wrong = Simt::build_changed(folder, Order::Mixed, &changes).unwrap_or_else(|error| panic!("{error}"));
    match choose(&wrong, Kernels::Auto) {
        Ok(choice) => {
            println!("{}", choice.why);
            assert_eq!(choice.ways, Ways::default(), "{}", choice.why);
            assert!(
                choice.why.contains("multiplies on plain kernels, since"),
                "{}",
                choice.why
            );
        }
        Err(error) => panic!("{error}"),
    }
}

/// A wait too few is a read of what has not come.
#[test]
fn a_missing_wait_is_found() {
    let changes = [("    phase_wait(places.keys_full + slot, parity);\n", "")];
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let wrong =
        Simt::build_changed(folder, Order::Backwards, &changes).unwrap_or_else(|error| panic!("{error}"));
    let error = choose(&wrong, Kernels::Auto).unwrap_err().to_string();
    assert!(error.contains("were under way when the block ended"), "{error}");
    assert!(error.contains("--cuda-kernels plain"), "{error}");
}
