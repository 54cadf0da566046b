// Command parse reads messages from protobuf's JSON with the strict parser of Go's library and the types of
// go-control-plane: unknown fields, wrong forms and types that nobody knows are errors.
//
// It takes one JSON document a line and answers each with one:
//
//	{"type": "envoy.admin.v3.ConfigDump", "text": "{...}"}
//	{"error": "..."}
//
// The error is empty when the text is such a message.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// The largest page taken.
const maxLine = 256 << 20

type question struct {
	Type string `json:"type"`
	Text string `json:"text"`
}

type answer struct {
	Error string `json:"error"`
}

func parse(line []byte) error {
	var q question
	if err := json.Unmarshal(line, &q); err != nil {
		return err
	}
	found, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(q.Type))
	if err != nil {
		return err
	}
	return protojson.Unmarshal([]byte(q.Text), found.New().Interface())
}

func run() error {
	out := json.NewEncoder(os.Stdout)
	input := bufio.NewScanner(os.Stdin)
	input.Buffer(nil, maxLine)
	for input.Scan() {
		var a answer
		if err := parse(input.Bytes()); err != nil {
			a.Error = err.Error()
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
	return input.Err()
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
