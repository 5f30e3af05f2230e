package main

import (
	"io"
	"maps"
	"os"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/writer"
)

// newLogger returns a logger that writes errors and warnings to stderr and the rest to stdout. dockerd writes a plugin's stderr
// into its own log as errors, and its stdout as information; there is no way to have it write a warning. Text has no time:
// dockerd and systemd's journal put one before each line.
func newLogger(s settings) *logrus.Logger {
	log := logrus.New()
	log.SetLevel(s.logLevel)
	log.SetOutput(io.Discard)
	log.SetFormatter(&logrus.TextFormatter{DisableTimestamp: true, DisableColors: true})
	if s.logJSON {
		log.SetFormatter(&jsonFormatter{})
	}
	log.AddHook(&writer.Hook{Writer: os.Stderr, LogLevels: logrus.AllLevels[:logrus.WarnLevel+1]})
	log.AddHook(&writer.Hook{Writer: os.Stdout, LogLevels: logrus.AllLevels[logrus.WarnLevel+1:]})
	return log
}

// jsonFormatter writes a duration as seconds and its unit into the key: took=1.5s becomes "took_s":1.5. logrus writes
// nanoseconds.
type jsonFormatter struct{ logrus.JSONFormatter }

func (f *jsonFormatter) Format(entry *logrus.Entry) ([]byte, error) {
	inSeconds := *entry
	inSeconds.Data = maps.Clone(entry.Data)
	for key, value := range entry.Data {
		if d, ok := value.(time.Duration); ok {
			delete(inSeconds.Data, key)
			inSeconds.Data[key+"_s"] = d.Seconds()
		}
	}
	return f.JSONFormatter.Format(&inSeconds)
}
