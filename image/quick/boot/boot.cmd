# The A/B choice of stock U-Boot. Filled in from the layout. The environment is a file in the partition @LABEL_ENV@ (CRC-32
# and data), which Linux reads and writes with libubootenv.
#
#   BOOT_ORDER              slots, the wanted one first
#   BOOT_A_LEFT BOOT_B_LEFT starts left without mark-good
#   BOOT_SPENT              both were spent once since the last mark-good
#   GOOD_A GOOD_B           which system was marked good in this slot (Linux's own)
#   OVERLAYS                changes of the device tree that provision.toml asked for
@CHECK@
setenv dv "${devtype} ${devnum}"
setenv tree ${fdt_addr}
setenv names BOOT_ORDER BOOT_A_LEFT BOOT_B_LEFT BOOT_SPENT GOOD_A GOOD_B OVERLAYS
part start ${dv} @LABEL_ENV@ envlba
if ${devtype} read ${scriptaddr} ${envlba} 20; then env import -c ${scriptaddr} @ENV_BYTES@ ${names} || echo "KENTLEDGE: no valid environment, beginning with slot A"; fi
test -n "${BOOT_ORDER}" || setenv BOOT_ORDER "A B"
test -n "${BOOT_A_LEFT}" || setenv BOOT_A_LEFT @BOOT_ATTEMPTS@
test -n "${BOOT_B_LEFT}" || setenv BOOT_B_LEFT @BOOT_ATTEMPTS@
echo "KENTLEDGE: order=${BOOT_ORDER} A=${BOOT_A_LEFT} B=${BOOT_B_LEFT}"
setenv slot
for s in ${BOOT_ORDER}; do
  if test "x${slot}" = "x"; then
    if test "x${s}" = "xA"; then
      if test 0x${BOOT_A_LEFT} -gt 0; then setexpr BOOT_A_LEFT ${BOOT_A_LEFT} - 1; setenv slot A; setenv plabel @LABEL_A@; fi
    fi
    if test "x${s}" = "xB"; then
      if test 0x${BOOT_B_LEFT} -gt 0; then setexpr BOOT_B_LEFT ${BOOT_B_LEFT} - 1; setenv slot B; setenv plabel @LABEL_B@; fi
    fi
  fi
done
if test "x${slot}" = "x"; then
  if test "x${BOOT_SPENT}" = "x1"; then
    echo "KENTLEDGE: neither slot starts. Stopped: flash this device again (README, Flashing)."
    while true; do sleep 3600; done
  fi
  echo "KENTLEDGE: both slots are spent; each gets its starts once more"
  setenv BOOT_SPENT 1; setenv BOOT_A_LEFT @BOOT_ATTEMPTS@; setenv BOOT_B_LEFT @BOOT_ATTEMPTS@
fi
setenv write
for n in ${names}; do if env exists ${n}; then setenv write "${write} ${n}"; fi; done
env export -c -s @ENV_BYTES@ ${scriptaddr} ${write}
${devtype} write ${scriptaddr} ${envlba} 20
if test "x${slot}" = "x"; then reset; fi
part number ${dv} ${plabel} pn
@TREE@
setenv bootargs "@CONSOLE_WORDS@ root=PARTLABEL=${plabel} ro init=/usr/lib/kentledge/preinit rauc.slot=${slot} panic=3 quiet loglevel=4 systemd.show_status=auto"
echo "KENTLEDGE: starting slot ${slot}"
load ${dv}:${pn} ${kernel_addr_r} /boot/Image && setenv kernel_comp_size ${filesize} && load ${dv}:${pn} ${ramdisk_addr_r} /boot/initrd && booti ${kernel_addr_r} ${ramdisk_addr_r}:${filesize} ${tree}
echo "KENTLEDGE: slot ${slot} did not start"
sleep 1
reset
