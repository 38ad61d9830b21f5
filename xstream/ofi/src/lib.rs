//! Network fabric over libfabric RDM endpoints
