//! The booted image: what a device does from the first start over updates to the moment its plug is pulled, seen from its
//! serial console, over SSH and at the host's broker. Every machine boots an image that
//! `image/build` made: the virtual board's, in `card` a Raspberry Pi 4's.

mod card;
mod cuts;
mod faults;
mod first;
mod release;
mod updates;
mod world;
