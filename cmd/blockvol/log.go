package main

import (
	"io"
	"maps"
	"os"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/writer"

	"github.com/blockvol/blockvol/internal/host"
)

// onHost translates the paths in log lines into those that the machine has.
type onHost struct{ paths host.Paths }

// Levels implements logrus.Hook.
func (onHost) Levels() []logrus.Level { return logrus.AllLevels }

// Fire implements logrus.Hook. The entry is the line's own.
func (o onHost) Fire(entry *logrus.Entry) error {
	entry.Message = o.paths.In(entry.Message)
	for key, value := range entry.Data {
		switch value := value.(type) {
		case string:
			entry.Data[key] = o.paths.In(value)
		case error:
			entry.Data[key] = o.paths.In(value.Error())
		}
	}
	return nil
}

// newLogger returns a logger that writes errors and warnings to stderr and the rest to stdout. dockerd writes a plugin's stderr
// into its own log as errors, and its stdout as information; there is no way to have it write a warning. Text has no time:
// dockerd and systemd's journal put one before each line.
func newLogger(s settings, paths host.Paths) *logrus.Logger {
	log := logrus.New()
	log.SetLevel(s.logLevel)
	log.SetOutput(io.Discard)
	log.SetFormatter(&logrus.TextFormatter{DisableTimestamp: true, DisableColors: true})
	if s.logJSON {
		log.SetFormatter(&jsonFormatter{})
	}
	log.AddHook(onHost{paths})
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
