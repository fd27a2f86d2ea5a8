//! Machines in a seeded world.

mod depot;
mod simulation;
