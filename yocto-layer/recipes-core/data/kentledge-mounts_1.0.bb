SUMMARY = "Places of a read-only root"
DESCRIPTION = "The boot partition, and where the name service's file is. /data and /var are mounted before systemd (kentledge-preinit)."
HOMEPAGE = "https://kentledge.invalid"
BUGTRACKER = "https://kentledge.invalid/issues"
SECTION = "base"
LICENSE = "Apache-2.0 | MIT"
LIC_FILES_CHKSUM = "file://${KENTLEDGE_MAIN}/LICENSE-MIT;md5=${@bb.utils.md5_file(d.getVar('KENTLEDGE_MAIN') + '/LICENSE-MIT')}"

inherit systemd features_check

REQUIRED_DISTRO_FEATURES = "systemd"
# A Jetson has no partition of ours for provision.toml: it lies on the EFI system partition.
KENTLEDGE_BOOT_PARTITION = "${KENTLEDGE_LABEL_BOOT}"
KENTLEDGE_BOOT_PARTITION:tegra = "esp"

SRC_URI = "file://boot.mount file://80-kentledge.network"
S = "${UNPACKDIR}"

# The partition's name differs between boards.
PACKAGE_ARCH = "${MACHINE_ARCH}"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -D -m 0644 ${S}/boot.mount ${D}${systemd_system_unitdir}/boot.mount
    sed -i 's/@LABEL_BOOT@/${KENTLEDGE_BOOT_PARTITION}/' ${D}${systemd_system_unitdir}/boot.mount
    install -D -m 0644 ${S}/80-kentledge.network ${D}${nonarch_libdir}/systemd/network/80-kentledge.network
}

SYSTEMD_SERVICE:${PN} = "boot.mount"
FILES:${PN} += "${nonarch_libdir}/systemd"
