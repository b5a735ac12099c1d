//! Rows that are put together from pieces.

use super::*;

fn read(table: Registers, count: u16) -> Read {
    Read { slave: 1, table, address: 100, count, every_ms: 1000, parts: vec![(100, count)] }
}

#[test]
fn row_of_one_piece_is_its_number_and_the_registers() {
    let read = read(Registers::Holding, 2);
    let mut row = Row::new(&read);
    row.put(&read, Piece { address: 100, count: 2 }, &[1, 2, 3, 4]);
    assert_eq!(row.frame(3), Some(vec![3, 0, 1, 2, 3, 4]));
}

#[test]
fn row_with_a_hole_says_which_bytes_came_and_one_without_any_is_none() {
    let read = read(Registers::Input, 5);
    let mut row = Row::new(&read);
    assert_eq!(Row::new(&read).frame(0), None);
    row.put(&read, Piece { address: 100, count: 1 }, &[1, 2]);
    row.put(&read, Piece { address: 104, count: 1 }, &[9, 8]);
    assert_eq!(row.frame(0), Some(vec![0, 0x80, 0b0000_0011, 0b0000_0011, 1, 2, 0, 0, 0, 0, 0, 0, 9, 8]));
}

#[test]
fn bits_become_bytes() {
    let read = read(Registers::Coil, 10);
    let mut row = Row::new(&read);
    row.put(&read, Piece { address: 100, count: 10 }, &[0b0000_0101, 0b10]);
    assert_eq!(row.frame(0), Some(vec![0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 1]));
}

#[test]
fn piece_is_shown_with_its_device_table_and_addresses() {
    let read = read(Registers::Discrete, 20);
    assert_eq!(shown(&read, Piece { address: 100, count: 1 }), "device 1, discrete input 100");
    assert_eq!(shown(&read, Piece { address: 100, count: 20 }), "device 1, discrete inputs 100 to 119");
}
