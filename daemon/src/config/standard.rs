//! What NMEA 0183 says of its sentences: which field calls a value invalid, which field says what a value means, and the units
//! that letters stand for. Places count from 1 here, as in the books.

/// What a field must be.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldRule {
    /// Its place, from 0. A sentence that ends before it fits.
    pub place: usize,
    /// What it must be.
    pub test: FieldTest,
}

/// What the text of a field must be.
#[derive(Debug, Clone, PartialEq)]
pub enum FieldTest {
    /// One of these.
    OneOf(Vec<String>),
    /// None of these.
    NoneOf(&'static [&'static str]),
    /// It has another letter beside these.
    NotOnly(&'static str),
}

impl FieldTest {
    /// Whether the text fits.
    pub fn fits(&self, text: &str) -> bool {
        match self {
            Self::OneOf(all) => all.iter().any(|one| one == text),
            Self::NoneOf(all) => !all.contains(&text),
            Self::NotOnly(letters) => text.chars().any(|c| !letters.contains(c)),
        }
    }
}

/// What a receiver writes where it has no value it stands for: V, or nothing.
const VOID: FieldTest = FieldTest::NoneOf(&["V", ""]);
/// The mode of a position: not valid, estimated, manual, simulated.
const MODE: FieldTest = FieldTest::NoneOf(&["N", "E", "M", "S"]);
/// The quality of a fix: none, estimated, manual, simulated.
const FIX: FieldTest = FieldTest::NoneOf(&["", "0", "6", "7", "8"]);

/// Sentence, first and last value, and the field that says whether they are valid.
const VALID: [(&str, usize, usize, usize, FieldTest); 22] = [
    ("RMC", 3, 99, 2, VOID),
    ("GLL", 1, 99, 6, VOID),
    ("GGA", 2, 99, 6, FIX),
    // One letter for each system of satellites: one with a fix is enough.
    ("GNS", 2, 99, 6, FieldTest::NotOnly("NEMS")),
    ("GSA", 3, 99, 2, FieldTest::NoneOf(&["", "1"])),
    ("VTG", 1, 99, 9, MODE),
    ("MWV", 1, 4, 5, VOID),
    ("ROT", 1, 1, 2, VOID),
    ("RPM", 3, 4, 5, VOID),
    ("RSA", 1, 1, 2, VOID),
    ("RSA", 3, 3, 4, VOID),
    ("THS", 1, 1, 2, FieldTest::NoneOf(&["V", "E", "M", "S", ""])),
    ("VBW", 1, 2, 3, VOID),
    ("VBW", 4, 5, 6, VOID),
    ("VBW", 7, 7, 8, VOID),
    ("VBW", 9, 9, 10, VOID),
    ("APB", 3, 99, 1, VOID),
    ("APB", 3, 99, 2, VOID),
    ("XTE", 3, 99, 1, VOID),
    ("XTE", 3, 99, 2, VOID),
    ("RMB", 2, 99, 1, VOID),
    ("RMB", 2, 99, 14, MODE),
];

/// Sentence, value, and a field that says what it means: hemisphere, side, reference, unit.
const LETTERS: [(&str, usize, usize); 57] = [
    ("MWV", 1, 2),
    ("MWV", 3, 2),
    ("MWV", 3, 4),
    ("VWR", 1, 2),
    ("VWR", 3, 4),
    ("VWR", 5, 6),
    ("VWR", 7, 8),
    ("VWT", 1, 2),
    ("VWT", 3, 4),
    ("VWT", 5, 6),
    ("VWT", 7, 8),
    ("MWD", 1, 2),
    ("MWD", 3, 4),
    ("MWD", 5, 6),
    ("MWD", 7, 8),
    ("HDG", 2, 3),
    ("HDG", 4, 5),
    ("HDT", 1, 2),
    ("HDM", 1, 2),
    ("VHW", 1, 2),
    ("VHW", 3, 4),
    ("VHW", 5, 6),
    ("VHW", 7, 8),
    ("VTG", 1, 2),
    ("VTG", 3, 4),
    ("VTG", 5, 6),
    ("VTG", 7, 8),
    ("VDR", 1, 2),
    ("VDR", 3, 4),
    ("VDR", 5, 6),
    ("VLW", 1, 2),
    ("VLW", 3, 4),
    ("DBT", 1, 2),
    ("DBT", 3, 4),
    ("DBT", 5, 6),
    ("DBK", 1, 2),
    ("DBK", 3, 4),
    ("DBK", 5, 6),
    ("DBS", 1, 2),
    ("DBS", 3, 4),
    ("DBS", 5, 6),
    ("MTW", 1, 2),
    ("MTA", 1, 2),
    ("MMB", 1, 2),
    ("MMB", 3, 4),
    ("MDA", 1, 2),
    ("MDA", 3, 4),
    ("RMC", 3, 4),
    ("RMC", 5, 6),
    ("RMC", 10, 11),
    ("GLL", 1, 2),
    ("GLL", 3, 4),
    ("GGA", 2, 3),
    ("GGA", 4, 5),
    ("RPM", 3, 1),
    ("RPM", 3, 2),
    ("XTE", 3, 4),
];

/// Conditions on other fields for the value at this place, from 0.
pub(super) fn valid(sentence: &str, place: usize) -> Vec<FieldRule> {
    let of = |(name, first, last, field, test): &(&str, usize, usize, usize, FieldTest)| {
        let meant = *name == sentence && (*first..=*last).contains(&(place + 1)) && *field != place + 1;
        meant.then(|| FieldRule { place: field - 1, test: test.clone() })
    };
    VALID.iter().filter_map(of).collect()
}

/// Places, from 0, of the fields that say what the value at this place means.
pub(super) fn letters(sentence: &str, place: usize) -> impl Iterator<Item = usize> {
    LETTERS
        .into_iter()
        .filter(move |(name, value, _)| *name == sentence && *value == place + 1)
        .map(|(_, _, at)| at - 1)
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quantity {
    Speed,
    Length,
    Temperature,
    Pressure,
}

/// A unit that letters of sentences stand for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Unit {
    quantity: Quantity,
    /// In m/s, m, °C, Pa: × scale + offset.
    scale: f64,
    offset: f64,
}

const fn unit(quantity: Quantity, scale: f64) -> Unit {
    Unit { quantity, scale, offset: 0.0 }
}

const M_S: Unit = unit(Quantity::Speed, 1.0);
const KM_H: Unit = unit(Quantity::Speed, 1.0 / 3.6);
const KN: Unit = unit(Quantity::Speed, 1852.0 / 3600.0);
const MPH: Unit = unit(Quantity::Speed, 0.44704);
const M: Unit = unit(Quantity::Length, 1.0);
const KM: Unit = unit(Quantity::Length, 1000.0);
const FT: Unit = unit(Quantity::Length, 0.3048);
const FATHOM: Unit = unit(Quantity::Length, 1.8288);
const NMI: Unit = unit(Quantity::Length, 1852.0);
const CELSIUS: Unit = unit(Quantity::Temperature, 1.0);
const FAHRENHEIT: Unit = Unit { quantity: Quantity::Temperature, scale: 5.0 / 9.0, offset: -160.0 / 9.0 };
const KELVIN: Unit = Unit { quantity: Quantity::Temperature, scale: 1.0, offset: -273.15 };
const PA: Unit = unit(Quantity::Pressure, 1.0);
const HPA: Unit = unit(Quantity::Pressure, 100.0);
const BAR: Unit = unit(Quantity::Pressure, 100_000.0);
const IN_HG: Unit = unit(Quantity::Pressure, 3386.389);

/// Units by the words of a configuration.
const UNITS: [(&str, Unit); 19] = [
    ("m/s", M_S),
    ("km/h", KM_H),
    ("kn", KN),
    ("knots", KN),
    ("mph", MPH),
    ("m", M),
    ("km", KM),
    ("ft", FT),
    ("fathom", FATHOM),
    ("nmi", NMI),
    ("°C", CELSIUS),
    ("°F", FAHRENHEIT),
    ("K", KELVIN),
    ("Pa", PA),
    ("hPa", HPA),
    ("mbar", HPA),
    ("kPa", unit(Quantity::Pressure, 1000.0)),
    ("bar", BAR),
    ("inHg", IN_HG),
];

impl Unit {
    /// By its name in a configuration.
    pub(super) fn named(word: &str) -> Option<Self> {
        UNITS.iter().find(|(name, _)| *name == word).map(|(_, unit)| *unit)
    }

    /// Its name in a configuration.
    pub(super) fn name(self) -> &'static str {
        UNITS.iter().find(|(_, unit)| *unit == self).map_or("", |(name, _)| name)
    }

    /// The words of all units.
    pub(super) fn names() -> impl Iterator<Item = &'static str> + Clone {
        UNITS.into_iter().map(|(name, _)| name)
    }

    /// A value whose unit a sentence gives with this letter, in this unit. `None`: the letter is no unit of what is measured.
    pub fn convert(self, value: f64, letter: &str) -> Option<f64> {
        let from = match (self.quantity, letter) {
            (Quantity::Speed, "N") => KN,
            (Quantity::Speed, "M") => M_S,
            (Quantity::Speed, "K") => KM_H,
            (Quantity::Speed, "S") => MPH,
            (Quantity::Length, "M") => M,
            (Quantity::Length, "f") => FT,
            (Quantity::Length, "F") => FATHOM,
            (Quantity::Length, "N") => NMI,
            (Quantity::Length, "K") => KM,
            (Quantity::Temperature, "C") => CELSIUS,
            (Quantity::Temperature, "F") => FAHRENHEIT,
            (Quantity::Temperature, "K") => KELVIN,
            (Quantity::Pressure, "P") => PA,
            (Quantity::Pressure, "B") => BAR,
            (Quantity::Pressure, "I") => IN_HG,
            _ => return None,
        };
        // As it was written, where nothing is to be converted.
        let same = from == self;
        Some(if same { value } else { (value * from.scale + from.offset - self.offset) / self.scale })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_convert_by_the_letters_of_their_own_quantity() {
        let convert = |to, value, letter| Unit::named(to).expect("a unit").convert(value, letter);
        let near = |to, value, letter, wanted: f64| {
            let got = convert(to, value, letter).expect("a value");
            assert!((got - wanted).abs() < 1e-3, "{value} {letter} in {to}: {got}");
        };
        near("m/s", 19.5, "N", 10.032);
        near("kn", 10.0, "K", 5.3996);
        near("km/h", 10.0, "S", 16.0934);
        near("m", 10.0, "f", 3.048);
        near("m", 10.0, "F", 18.288);
        near("°C", 212.0, "F", 100.0);
        near("°F", -40.0, "C", -40.0);
        near("K", 20.0, "C", 293.15);
        near("hPa", 1.0125, "B", 1012.5);
        near("inHg", 101_325.0, "P", 29.921);
        assert_eq!(convert("kn", 7.7, "N"), Some(7.7), "as it was written");
        assert_eq!((convert("kn", 1.0, "C"), convert("m", 1.0, ""), convert("bar", 1.0, "f")), (None, None, None));
    }

    #[test]
    fn every_sentence_of_the_tables_has_its_fields_where_the_books_have_them() {
        assert_eq!(valid("RMC", 2), [FieldRule { place: 1, test: VOID }]);
        assert_eq!(valid("RSA", 2), [FieldRule { place: 3, test: VOID }]);
        assert_eq!((valid("RMC", 1), valid("HDG", 0)), (vec![], vec![]));
        assert_eq!(letters("MWV", 2).collect::<Vec<_>>(), [1, 3]);
        assert!(!FieldTest::NotOnly("NEMS").fits("NN") && FieldTest::NotOnly("NEMS").fits("NA"));
    }
}
