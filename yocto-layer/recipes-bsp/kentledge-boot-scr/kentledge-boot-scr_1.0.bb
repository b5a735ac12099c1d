SUMMARY = "The A/B choice for QEMU's U-Boot"
DESCRIPTION = "The quick image's boot script without an initrd: this kernel has the drivers that it needs built in."
HOMEPAGE = "https://kentledge.invalid"
BUGTRACKER = "https://kentledge.invalid/issues"
SECTION = "bootloaders"
LICENSE = "Apache-2.0 | MIT"
LIC_FILES_CHKSUM = "file://${KENTLEDGE_MAIN}/LICENSE-MIT;md5=${@bb.utils.md5_file(d.getVar('KENTLEDGE_MAIN') + '/LICENSE-MIT')}"

DEPENDS = "u-boot-mkimage-native"
INHIBIT_DEFAULT_DEPS = "1"

# nooelint: oelint.vars.fileextrapaths oelint.vars.outofcontext
FILESEXTRAPATHS:prepend := "${KENTLEDGE_MAIN}/image/quick/boot:"
SRC_URI = "file://boot.cmd"
S = "${UNPACKDIR}"
B = "${WORKDIR}/build"

inherit kernel-arch deploy nopackages

COMPATIBLE_MACHINE = "(qemuall)"
PACKAGE_ARCH = "${MACHINE_ARCH}"

do_configure[noexec] = "1"

do_compile() {
    sed -e 's|@LABEL_ENV@|${KENTLEDGE_LABEL_ENV}|g' -e 's|@ENV_BYTES@|${KENTLEDGE_ENV_BYTES}|g' \
        -e 's|@LABEL_A@|${KENTLEDGE_LABEL_A}|g' -e 's|@LABEL_B@|${KENTLEDGE_LABEL_B}|g' \
        -e 's|@BOOT_ATTEMPTS@|${KENTLEDGE_BOOT_ATTEMPTS}|g' \
        -e '/^@CHECK@$/d' -e '/^@TREE@$/d' -e 's|@CONSOLE_WORDS@|console=ttyAMA0|' \
        -e 's|^load .*|load ${dv}:${pn} ${kernel_addr_r} /boot/${KERNEL_IMAGETYPE} \&\& booti ${kernel_addr_r} - ${tree}|' \
        ${S}/boot.cmd > boot.cmd
    ! grep -E '^[^#]*@[A-Z_]+@' boot.cmd || bbfatal "boot.cmd: not filled in"
    mkimage -A ${UBOOT_ARCH} -T script -C none -n kentledge -d boot.cmd boot.scr
}

do_install[noexec] = "1"

do_deploy() {
    install -D -m 0644 ${B}/boot.scr ${DEPLOYDIR}/boot.scr
}
addtask deploy after do_compile before do_build
