# A Raspberry Pi: is this the board that the card is for? The firmware's device tree names it.
# Beside the firmware's tree: Debian's kernel is larger than stock U-Boot's own addresses have room for.
setenv ramdisk_addr_r 0x0c000000
setenv fdtoverlay_addr 0x0bf00000
setenv kernel_comp_addr_r 0x10000000
fdt addr ${fdt_addr}
fdt get value board / compatible
setenv known
for b in @BOARDS@; do if test "x${b}" = "x${board}"; then setenv known 1; fi; done
if test "x${known}" = "x"; then
  echo "KENTLEDGE: this card is for a @BOARD_NAME@, and this board is ${board}. Stopped: write the card for this board."
  while true; do sleep 3600; done
fi
