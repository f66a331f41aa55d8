//! What users write and read: configuration documents, and nothing that acts on them.
