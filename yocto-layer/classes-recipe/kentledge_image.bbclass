# An image of ours: read-only root, all state on /data, and nothing in it that must not leave the house.
inherit core-image

IMAGE_FEATURES += "read-only-rootfs ssh-server-openssh"
# Development images say otherwise.
KENTLEDGE_RELEASE ?= "1"

IMAGE_INSTALL = "\
    packagegroup-core-boot \
    packagegroup-kentledge \
    ${CORE_IMAGE_EXTRA_INSTALL} \
"

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
ROOTFS_POSTPROCESS_COMMAND += "kentledge_rootfs"

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
ROOTFS_POSTPROCESS_COMMAND += "kentledge_no_setuid kentledge_release_checks"
