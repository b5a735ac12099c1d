# A root is given (KENTLEDGE_ROOT); what the image does with it is run in order.
IMAGE_FEATURES ?= ""
CORE_IMAGE_EXTRA_INSTALL ?= ""
ROOTFS_POSTPROCESS_COMMAND ?= ""

addtask rootfs after do_install
do_rootfs[cleandirs] = "${IMAGE_ROOTFS}"
python do_rootfs() {
    bb.process.run(["cp", "-a", d.getVar("KENTLEDGE_ROOT") + "/.", d.getVar("IMAGE_ROOTFS")])
    for command in d.getVar("ROOTFS_POSTPROCESS_COMMAND").split():
        bb.build.exec_func(command, d)
}
