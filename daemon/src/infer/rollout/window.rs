//! Whether a model takes the windows that its pipelines make. Windows are made before any model sees them, so a model that
//! takes over must take the same ones.

use std::fmt::Debug;

use crate::model::manifest::Manifest;

/// Checks that `next` takes the windows of `now`, the configured model.
///
/// # Errors
/// The first key of the window that differs, and both values.
pub fn same(now: &Manifest, next: &Manifest) -> Result<(), String> {
    // Where one of the two leaves a key out, the configuration says it for both.
    fn both<T: PartialEq + Debug>(now: &Option<T>, next: &Option<T>) -> Option<(String, String)> {
        let (now, next) = (now.as_ref()?, next.as_ref()?);
        (now != next).then(|| (format!("{now:?}"), format!("{next:?}")))
    }
    let all = [
        ("channels", both(&now.channels, &next.channels)),
        ("length", both(&now.steps, &next.steps)),
        ("hop", both(&now.hop, &next.hop)),
        ("step_ms", both(&now.step_ms, &next.step_ms)),
        ("gap_max_ms", both(&now.gap_max_ms, &next.gap_max_ms)),
    ];
    match all.into_iter().find_map(|(name, pair)| pair.map(|(now, next)| (name, now, next))) {
        Some((name, now, next)) => Err(format!("its window's `{name}` is {next}, and the pipeline's is {now}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(window: &str) -> Manifest {
        let text = format!(r#"{{"model":"m","version":"1.0.0","files":[{{"name":"m.onnx"}}],"window":{window}}}"#);
        Manifest::parse(text.as_bytes()).expect("manifest")
    }

    #[test]
    fn window_that_differs_in_one_key_is_rejected_with_its_name_and_both_values() {
        let now = manifest(r#"{"channels":["a","b"],"length":8,"hop":4,"step_ms":10,"gap_max_ms":30}"#);
        for (name, next, value) in [
            ("channels", r#"{"channels":["b","a"],"length":8,"hop":4,"step_ms":10,"gap_max_ms":30}"#, "[\"b\", \"a\"]"),
            ("length", r#"{"channels":["a","b"],"length":9,"hop":4,"step_ms":10,"gap_max_ms":30}"#, "9"),
            ("hop", r#"{"channels":["a","b"],"length":8,"hop":5,"step_ms":10,"gap_max_ms":30}"#, "5"),
            ("step_ms", r#"{"channels":["a","b"],"length":8,"hop":4,"step_ms":11,"gap_max_ms":30}"#, "11"),
            ("gap_max_ms", r#"{"channels":["a","b"],"length":8,"hop":4,"step_ms":10,"gap_max_ms":31}"#, "31"),
        ] {
            let why = same(&now, &manifest(next)).expect_err(name);
            assert!(why.contains(&format!("`{name}` is {value},")), "{why}");
        }
        assert_eq!(same(&now, &now), Ok(()));
    }

    #[test]
    fn key_that_one_of_the_two_leaves_out_is_no_difference() {
        let (now, next) =
            (manifest(r#"{"channels":["a"],"length":8,"hop":4}"#), manifest(r#"{"channels":["a"],"length":8}"#));
        assert_eq!((same(&now, &next), same(&next, &now)), (Ok(()), Ok(())));
    }
}
