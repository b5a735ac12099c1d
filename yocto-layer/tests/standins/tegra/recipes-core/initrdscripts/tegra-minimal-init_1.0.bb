# meta-tegra: the initramfs' /init, which starts /sbin/init whatever the kernel's line says.
do_install() {
    printf '#!/bin/sh\nexec switch_root /mnt /sbin/init\n' >${D}/init
}
