//! Every shader instance, without a device.
