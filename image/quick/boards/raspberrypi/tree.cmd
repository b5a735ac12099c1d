# The firmware's words for the kernel (cmdline.txt), and the overlays that provision.toml asked for, on a copy of its tree.
setenv fwargs
fdt get value fwargs /chosen bootargs
if test -n "${OVERLAYS}"; then
  setenv tree 0x0b000000
  fdt move ${fdt_addr} ${tree} 0x40000
  for o in ${OVERLAYS}; do
    if test "x${tree}" != "x${fdt_addr}"; then
      if load ${dv}:${pn} ${fdtoverlay_addr} /usr/lib/kentledge/overlays/${o}.dtbo && fdt apply ${fdtoverlay_addr}; then
        echo "KENTLEDGE: overlay ${o}"
      else
        echo "KENTLEDGE: overlay ${o} does not fit: starting without any"
        setenv tree ${fdt_addr}
      fi
    fi
  done
  fdt addr ${tree}
fi
