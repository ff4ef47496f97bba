//! What each unit means, on plain tensors: the oracle of the tests.
