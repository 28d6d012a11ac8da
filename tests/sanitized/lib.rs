//! Nothing: the tests of this package are those of its neighbours.
