// Package backendtest holds every implementation of backend.Backend to its
// contract.
package backendtest
