//! The controller: gives the components of workflows to orchestration domains
