SUMMARY = "Kentledge: the image of a device"
DESCRIPTION = "Read-only root in two slots, all state on /data, updates by signed bundles."
HOMEPAGE = "https://kentledge.invalid"
BUGTRACKER = "https://kentledge.invalid/issues"
SECTION = "images"
LICENSE = "Apache-2.0 | MIT"

inherit kentledge_image
