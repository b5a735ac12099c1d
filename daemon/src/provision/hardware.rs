//! `[hardware]` in `provision.toml`: which overlays of the board's device tree are wanted. The boot loader applies them, so they are
//! in use from the next start on. Pure: only names that the image has get into the file.

use serde::Deserialize;

use crate::config::nearest;

/// Where the image keeps its overlays, `NAME.dtbo` each.
pub const OVERLAYS: &str = "/usr/lib/kentledge/overlays";

/// `[hardware]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hardware {
    #[serde(default)]
    overlays: Vec<String>,
}

/// The text of the file `overlays`: the names in one line; empty where none is wanted. `known` are the image's own; an image for a
/// board without overlays has none.
///
/// # Errors
/// A name that the image does not have, or one that is given twice.
pub(super) fn render(hardware: Option<&Hardware>, known: &[String]) -> Result<String, String> {
    let Some(hardware) = hardware else { return Ok(String::new()) };
    for (n, name) in hardware.overlays.iter().enumerate() {
        if !known.contains(name) {
            return Err(unknown(name, known));
        }
        if hardware.overlays[..n].contains(name) {
            return Err(format!("hardware.overlays: `{name}` is there twice"));
        }
    }
    Ok(if hardware.overlays.is_empty() { String::new() } else { format!("{}\n", hardware.overlays.join(" ")) })
}

fn unknown(name: &str, known: &[String]) -> String {
    if known.is_empty() {
        return format!("hardware.overlays: `{name}`: this image has no overlays; remove [hardware]");
    }
    let near = nearest(name, known.iter().map(String::as_str));
    let hint = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
    format!("hardware.overlays: this image has no overlay `{name}`{hint} Expected one of: {}", known.join(", "))
}

/// The overlays that the image has, sorted by name.
pub fn known() -> Vec<String> {
    let Ok(folder) = std::fs::read_dir(OVERLAYS) else { return Vec::new() };
    let names = folder.flatten().filter_map(|file| file.file_name().into_string().ok());
    let mut names: Vec<_> = names.filter_map(|name| name.strip_suffix(".dtbo").map(str::to_owned)).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlays(text: &str, known: &[&str]) -> Result<String, String> {
        let hardware: Hardware = toml::from_str(text).map_err(|why| why.to_string())?;
        render(Some(&hardware), &known.iter().map(|&name| name.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn overlays_that_the_image_has_become_one_line_and_others_are_rejected_with_the_nearest_name() {
        let known = ["spi0", "uart3", "w1"];
        assert_eq!(render(None, &[]).expect("nothing is wanted"), "");
        assert_eq!(overlays("overlays = []", &known).expect("none"), "");
        assert_eq!(overlays("overlays = [\"w1\", \"uart3\"]", &known).expect("two"), "w1 uart3\n");
        let why = overlays("overlays = [\"uart4\"]", &known).expect_err("not in the image");
        assert!(why.contains("did you mean `uart3`?") && why.contains("spi0, uart3, w1"), "{why}");
        let why = overlays("overlays = [\"w1\"]", &[]).expect_err("an image without overlays");
        assert!(why.contains("this image has no overlays"), "{why}");
        assert!(overlays("overlays = [\"w1\", \"w1\"]", &known).expect_err("twice").contains("twice"));
        assert!(overlays("overlays = [\"w1; reboot\"]", &known).is_err());
        assert!(overlays("overlay = [\"w1\"]", &known).is_err());
    }
}
