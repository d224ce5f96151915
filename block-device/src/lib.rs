//! What every layer speaks: requests, completions, geometry, errors
