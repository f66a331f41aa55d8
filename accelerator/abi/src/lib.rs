//! Map keys, values, names and limits shared by the kernel programs and the agent.
