# Our slots, our keys; in our distro only, so that the layer changes nothing by being there.
FILESEXTRAPATHS:prepend := "${KENTLEDGE_MAIN}/yocto-layer/files/rauc:"

SRC_URI:append:kentledge-distro = " file://system.conf.in file://fw_env.config.in"
# A key of ours comes from outside; without one the image's own checks stop a release.
RAUC_KEYRING_FILE:kentledge-distro = ""
RAUC_KEYRING_URI:kentledge-distro = ""
# The board's name is in it.
PACKAGE_ARCH:kentledge-distro = "${MACHINE_ARCH}"

KENTLEDGE_SLOT_A = "${KENTLEDGE_LABEL_A}"
KENTLEDGE_SLOT_B = "${KENTLEDGE_LABEL_B}"
# NVIDIA's boot loader and initramfs look for these.
KENTLEDGE_SLOT_A:tegra = "APP"
KENTLEDGE_SLOT_B:tegra = "APP_b"

# Replaces meta-rauc's, which installs its example configuration and ends without a keyring.
do_install:kentledge-distro() {
    install -d ${D}${sysconfdir}/rauc
    sed -e 's|@COMPATIBLE@|${KENTLEDGE_COMPATIBLE}|' -e 's|@VERSION@|${DISTRO_VERSION}|' \
        -e 's|@LABEL_A@|${KENTLEDGE_SLOT_A}|' -e 's|@LABEL_B@|${KENTLEDGE_SLOT_B}|' \
        -e 's|@BOOT_ATTEMPTS@|${KENTLEDGE_BOOT_ATTEMPTS}|' \
        ${UNPACKDIR}/system.conf.in > ${D}${sysconfdir}/rauc/system.conf
    if [ -n "${KENTLEDGE_KEYS}" ]; then
        install -m 0644 ${KENTLEDGE_KEYS}/rauc-ca.pem ${D}${sysconfdir}/rauc/keyring.pem
    fi
    if ${@'true' if 'tegra' in d.getVar('OVERRIDES').split(':') else 'false'}; then
        kentledge_tegra_backend
    else
        kentledge_uboot_environment
    fi
}
# A key that was replaced, in a file of the same name, makes the package again.
do_install[file-checksums] += "${@d.getVar('KENTLEDGE_KEYS') + '/rauc-ca.pem:True' if d.getVar('KENTLEDGE_KEYS') else ''}"

kentledge_uboot_environment() {
    sed -e 's|@LABEL_ENV@|${KENTLEDGE_LABEL_ENV}|' -e 's|@ENV_BYTES@|${KENTLEDGE_ENV_BYTES}|' \
        ${UNPACKDIR}/fw_env.config.in > ${D}${sysconfdir}/fw_env.config
    if ${@'true' if 'rpi' in d.getVar('OVERRIDES').split(':') else 'false'}; then
        # Two lines tell libubootenv that there are two copies; with one it would misread either.
        sed -i 's| 0x0 \(0x[0-9a-f]*\)$|&\n/dev/disk/by-partlabel/${KENTLEDGE_LABEL_ENV} ${KENTLEDGE_ENV_COPY} \1|' ${D}${sysconfdir}/fw_env.config
    fi
}

# Jetson's boot loader keeps its own counters; RAUC reaches them by our script.
kentledge_tegra_backend() {
    sed -i -e 's|^bootloader=uboot|bootloader=custom|' -e '/^boot-attempts/d' \
        -e 's|^\[handlers\]|&\nbootloader-custom-backend=/usr/lib/kentledge/nvbootctrl-backend|' ${D}${sysconfdir}/rauc/system.conf
}
RDEPENDS:${PN}:append:tegra:kentledge-distro = " kentledge-nvbootctrl"

FILES:${PN}:append:kentledge-distro = " ${sysconfdir}/fw_env.config"
