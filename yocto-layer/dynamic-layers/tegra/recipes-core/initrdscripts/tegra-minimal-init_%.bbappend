# NVIDIA's initramfs ignores `init=` and starts /sbin/init. Ours begins with preinit, which gives /data and /var their places.
do_install:append:tegra:kentledge-distro() {
    sed -i 's|^exec switch_root /mnt /sbin/init$|exec switch_root /mnt /usr/lib/kentledge/preinit|' ${D}/init
    grep -q '^exec switch_root /mnt /usr/lib/kentledge/preinit$' ${D}/init || bbfatal "/init does not start preinit"
}
