//! The words, case by case.
