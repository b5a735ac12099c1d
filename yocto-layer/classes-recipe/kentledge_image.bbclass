# An image of ours: read-only root, all state on /data, and nothing in it that must not leave the house.

# A board's configuration says `?=` first; overrides are what it cannot silence. They are set here and not in the distro, where
# they would also apply to the initramfs of a Jetson: it would then wait for its own flash package.
IMAGE_FSTYPES:rpi = "ext4 wic.zst wic.bmap"
IMAGE_FSTYPES:qemuall = "ext4 wic.zst wic.bmap"
IMAGE_FSTYPES:tegra = "tegraflash-tar.zst ext4"
WKS_FILE:rpi = "kentledge-ab-rpi.wks.in"
WKS_FILE:qemuall = "kentledge-ab-qemu.wks.in"

inherit core-image

IMAGE_FEATURES += "read-only-rootfs ssh-server-openssh"
# Development images say otherwise.
KENTLEDGE_RELEASE ?= "1"

IMAGE_INSTALL = "\
    packagegroup-core-boot \
    packagegroup-kentledge \
    kernel-modules \
    ${CORE_IMAGE_EXTRA_INSTALL} \
"

# The kernel lies in the slot, so that an update replaces it too: the boot scripts load it from there. (Jetson's
# l4t-launcher-extlinux installs /boot/Image itself.)
IMAGE_INSTALL:append:rpi = " kernel-image udev-rules-rpi"
IMAGE_INSTALL:append:qemuall = " kernel-image"
# The GPU's driver and the fan. (A Raspberry Pi's group is left out: its radio's firmware wants a licence to be accepted.)
IMAGE_INSTALL:append:tegra = " packagegroup-machine-base"

# What the boot partition holds where no BSP says it.
IMAGE_BOOT_FILES:qemuall = "boot.scr"
EXTRA_IMAGEDEPENDS:append:qemuall = " kentledge-boot-scr virtual/bootloader"
do_image_wic[depends] += "${@'kentledge-boot-scr:do_deploy' if 'qemuall' in d.getVar('OVERRIDES').split(':') else ''}"

# On a Jetson the flash tool writes /data as an image of its own.
DATAFILE:tegra = "data.ext4"
IMAGE_TEGRAFLASH_DATA:tegra = "${DEPLOY_DIR_IMAGE}/kentledge-data.ext4"
do_image_tegraflash_tar[depends] += "${@'kentledge-data:do_deploy' if 'tegra' in d.getVar('OVERRIDES').split(':') else ''}"

# No file of the system is older than our newest commit. Before a network says the time, RAUC and TLS start from this one
# (/usr/lib/clock-epoch); oe-core's own value is in 2018.
REPRODUCIBLE_TIMESTAMP_ROOTFS = "${KENTLEDGE_TIME}"
python () {
    bb.parse.mark_dependency(d, d.getVar("KENTLEDGE_HEAD_LOG"))
}

# systemd becomes the first process by way of ours (daemon's sources: systemd/kentledge-preinit).
APPEND:append = " init=/usr/lib/kentledge/preinit"

kentledge_rootfs() {
    install -d ${IMAGE_ROOTFS}/data ${IMAGE_ROOTFS}/home/admin
    : > ${IMAGE_ROOTFS}${sysconfdir}/machine-id
    rm -f ${IMAGE_ROOTFS}${sysconfdir}/ssh/ssh_host_*
    # The build id is a digest of the content.
    build=$(cd ${IMAGE_ROOTFS} && find . -xdev -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16)
    {
        echo "IMAGE_ID=kentledge"
        echo "IMAGE_VERSION=${DISTRO_VERSION}"
        echo "BUILD_ID=$build"
    } >> ${IMAGE_ROOTFS}${nonarch_libdir}/os-release
    touch ${IMAGE_ROOTFS}${nonarch_libdir}/clock-epoch
}

# Rejects a release without keys, and one that has a password or a host key in it.
python kentledge_release_checks() {
    import os, re, stat
    if d.getVar("KENTLEDGE_RELEASE") != "1":
        return
    root = d.getVar("IMAGE_ROOTFS")
    problems = []
    keyring = os.path.join(root, "etc/rauc/keyring.pem")
    keyset = os.path.join(root, "usr/lib/kentledge/keyset.json")
    for path in (keyring, keyset):
        if not os.path.exists(path):
            problems.append("%s is missing: KENTLEDGE_KEYS" % path[len(root):])
    with open(os.path.join(root, "etc/shadow")) as shadow:
        for line in shadow:
            name, password = line.split(":")[:2]
            if not re.fullmatch(r"[!*]+", password):
                problems.append("%s can log in with a password" % name)
    if os.path.lexists(os.path.join(root, "etc/systemd/system/sockets.target.wants/sshd.socket")):
        problems.append("sshd.socket is enabled: a release must not listen for SSH by default")
    for folder, _, files in os.walk(root):
        for name in files:
            path = os.path.join(folder, name)
            if name.startswith("ssh_host_") and not name.endswith(".conf"):
                problems.append("%s is shared by every device" % path[len(root):])
            if not os.path.islink(path) and os.stat(path).st_mode & (stat.S_ISUID | stat.S_ISGID):
                problems.append("%s changes who one is" % path[len(root):])
    if problems:
        bb.fatal("this image must not be released:\n" + "\n".join(problems))
}

kentledge_no_setuid() {
    find ${IMAGE_ROOTFS} -xdev -type f -perm /6000 -exec chmod ug-s {} +
}

# `:append` and not `+=`: oe-core adds its own commands by a deferred inherit, so `+=` would put ours before them, and the
# checks would look before zap_empty_root_password has run.
ROOTFS_POSTPROCESS_COMMAND:append = " kentledge_rootfs kentledge_no_setuid kentledge_release_checks"
