SUMMARY = "What every Kentledge device has"
DESCRIPTION = "The daemon, its models, updates, time, network, and the few tools to look at a device with."
HOMEPAGE = "https://kentledge.invalid"
BUGTRACKER = "https://kentledge.invalid/issues"
SECTION = "base"
LICENSE = "Apache-2.0 | MIT"

# Before the class, which asks for it. What the group brings is made for one machine.
PACKAGE_ARCH = "${MACHINE_ARCH}"

inherit packagegroup features_check

REQUIRED_DISTRO_FEATURES = "polkit systemd"

RDEPENDS:${PN} = "\
    kentledge \
    kentledge-models \
    kentledge-mounts \
    ca-certificates \
    dosfstools \
    libgpiod-tools \
    systemd-analyze \
    ${@bb.utils.contains('BBFILE_COLLECTIONS', 'rauc', 'rauc rauc-service', '', d)} \
"
