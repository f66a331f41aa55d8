// Istio's own redirection rules, for the tests that compare with them.
//
// Reads one configuration a line, as JSON in the names of istio.io/istio/tools/common/config.Config on top of its
// defaults, and answers each with one line: the input that Istio would give to iptables-restore and ip6tables-restore,
// or its error. Nothing is executed.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"istio.io/istio/pkg/log"
	"istio.io/istio/tools/common/config"
	"istio.io/istio/tools/istio-iptables/pkg/capture"
	"istio.io/istio/tools/istio-iptables/pkg/constants"
	"istio.io/istio/tools/istio-iptables/pkg/dependencies"
)

// Longest configuration: the lists of a test are short.
const maxLineBytes = 1 << 20

// answer has either an error or rules; v6 is empty where Istio installs none.
type answer struct {
	V4    string `json:"v4"`
	V6    string `json:"v6"`
	Error string `json:"error,omitempty"`
}

func main() {
	// Istio logs to standard output, where the answers are.
	for _, scope := range log.Scopes() {
		scope.SetOutputLevel(log.NoneLevel)
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, maxLineBytes)
	answers := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		rules, err := render(lines.Bytes())
		if err != nil {
			rules = answer{Error: err.Error()}
		}
		if err := answers.Encode(rules); err != nil {
			fail(err)
		}
	}
	if err := lines.Err(); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "istio-iptables:", err)
	os.Exit(1)
}

func render(line []byte) (answer, error) {
	cfg := config.DefaultConfig()
	fields := json.NewDecoder(bytes.NewReader(line))
	fields.DisallowUnknownFields()
	if err := fields.Decode(cfg); err != nil {
		return answer{}, err
	}
	if err := cfg.Validate(); err != nil {
		return answer{}, err
	}
	var machine recorder
	configurator, err := capture.NewIptablesConfigurator(cfg, &machine)
	if err != nil {
		return answer{}, err
	}
	if err := configurator.Run(); err != nil {
		return answer{}, err
	}
	return machine.given, nil
}

// recorder is a machine without rules that keeps what it is given.
type recorder struct {
	given answer
}

func (r *recorder) DetectIptablesVersion(isV6 bool) (dependencies.IptablesVersion, error) {
	// Asks for the names of the programs only.
	return (&dependencies.DependenciesStub{}).DetectIptablesVersion(isV6)
}

func (r *recorder) Run(
	_ *log.Scope, _ bool, cmd constants.IptablesCmd, version *dependencies.IptablesVersion, stdin io.ReadSeeker, _ ...string,
) (*bytes.Buffer, error) {
	if cmd != constants.IPTablesRestore {
		return &bytes.Buffer{}, nil
	}
	text, err := io.ReadAll(stdin)
	if err != nil {
		return nil, err
	}
	switch version.DetectedRestoreBinary {
	case "iptables-restore":
		r.given.V4 = string(text)
	case "ip6tables-restore":
		r.given.V6 = string(text)
	default:
		return nil, fmt.Errorf("unknown program %q", version.DetectedRestoreBinary)
	}
	return &bytes.Buffer{}, nil
}
