//! Every kernel instance, without a device.
