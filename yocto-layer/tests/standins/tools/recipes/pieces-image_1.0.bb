# A root of the packages that `../oe tasks` made, so that oe-core's own classes write what they write of an image: its SBOM and its
# licence manifest. It does not start: all other packages are missing.
SUMMARY = "SBOM and licences of what was made here"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"

INHIBIT_DEFAULT_DEPS = "1"
PACKAGE_ARCH = "${MACHINE_ARCH}"

IMAGE_ROOTFS = "${WORKDIR}/rootfs"
IMAGE_PKGTYPE = "deb"
IMGDEPLOYDIR = "${WORKDIR}/deploy-image"
IMAGE_OUTPUT_MANIFEST = "${WORKDIR}/output-manifest.json"
IMAGE_VERSION_SUFFIX = ""
IMAGE_FEATURES = ""
IMAGE_FEATURES[type] = "list"

inherit nopackages image-artifact-names license_image create-spdx-image-3.0

PIECES = "kentledge kentledge-models kentledge-mounts onnxruntime-prebuilt rauc-conf"

do_configure[noexec] = "1"
do_compile[noexec] = "1"
do_install[noexec] = "1"

# As a package manager leaves it, without its scripts: files, and a list of what is installed.
fakeroot do_unpack_packages() {
    install -d ${IMAGE_ROOTFS}/var/lib/dpkg
    for name in ${PIECES}; do
        deb=$(find ${DEPLOY_DIR_DEB} -name "${name}_*.deb")
        dpkg-deb -x $deb ${IMAGE_ROOTFS}
        dpkg-deb -f $deb | sed 's/^Package: .*/&\nStatus: install ok installed/' >>${IMAGE_ROOTFS}/var/lib/dpkg/status
        echo >>${IMAGE_ROOTFS}/var/lib/dpkg/status
    done
}
do_unpack_packages[cleandirs] = "${IMAGE_ROOTFS}"

python do_rootfs() {
    for step in ("do_unpack_packages", "write_package_manifest", "license_create_manifest", "spdx_collect_rootfs_packages"):
        bb.build.exec_func(step, d)
}
do_rootfs[depends] = "${@' '.join(f'{name}:{task}' for name in d.getVar('PIECES').split() for task in ('do_package_write_deb', 'do_packagedata', 'do_populate_lic'))}"
do_rootfs[vardeps] += "PIECES"
addtask rootfs before do_build

python do_image_complete() {
    import json
    name = d.getVar("IMAGE_NAME") + ".tar"
    bb.utils.mkdirhier(d.getVar("IMGDEPLOYDIR"))
    bb.process.run(["tar", "-C", d.getVar("IMAGE_ROOTFS"), "-cf", os.path.join(d.getVar("IMGDEPLOYDIR"), name), "."])
    with open(d.getVar("IMAGE_OUTPUT_MANIFEST"), "w") as file:
        json.dump([{"taskname": "do_image_complete", "imagetype": "tar", "images": [{"filename": name}]}], file)
}
addtask image_complete after do_rootfs before do_build
