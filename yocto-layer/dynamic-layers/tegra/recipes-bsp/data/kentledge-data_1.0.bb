SUMMARY = "The empty partition /data of a Jetson"
DESCRIPTION = "An empty file system that the flash tool writes; it grows over its partition with the first start."
HOMEPAGE = "https://kentledge.invalid"
BUGTRACKER = "https://kentledge.invalid/issues"
SECTION = "base"
LICENSE = "Apache-2.0 | MIT"
LIC_FILES_CHKSUM = "file://${KENTLEDGE_MAIN}/LICENSE-MIT;md5=${@bb.utils.md5_file(d.getVar('KENTLEDGE_MAIN') + '/LICENSE-MIT')}"

DEPENDS = "e2fsprogs-native"
INHIBIT_DEFAULT_DEPS = "1"

S = "${UNPACKDIR}"
B = "${WORKDIR}/build"

inherit deploy nopackages

COMPATIBLE_MACHINE = "(tegra)"
PACKAGE_ARCH = "${MACHINE_ARCH}"

do_configure[noexec] = "1"

do_compile() {
    rm -f data.ext4
    # Always the same bytes: a fixed UUID and hash seed. Both say nothing about the device.
    truncate -s ${KENTLEDGE_DATA_MIB}M data.ext4
    E2FSPROGS_FAKE_TIME=${KENTLEDGE_TIME} mke2fs -q -t ext4 -L ${KENTLEDGE_LABEL_DATA} -U 6b656e74-6c65-6467-652d-2d2d64617461 \
        -E hash_seed=6b656e74-6c65-6467-652d-2d2d64617461 data.ext4
}
do_compile[vardepsexclude] += "KENTLEDGE_TIME"

do_install[noexec] = "1"

do_deploy() {
    install -D -m 0644 ${B}/data.ext4 ${DEPLOYDIR}/kentledge-data.ext4
}
addtask deploy after do_compile before do_build
