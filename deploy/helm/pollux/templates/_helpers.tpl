{{/* The name of a part. */}}
{{- define "pollux.name" -}}
{{- printf "%s-%s" .root.Release.Name .part | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Labels of everything. */}}
{{- define "pollux.labels" -}}
{{ include "pollux.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{/* Labels that pods are found by. */}}
{{- define "pollux.selector" -}}
app.kubernetes.io/name: pollux
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end -}}

{{/* An image. */}}
{{- define "pollux.image" -}}
{{- $image := index .root.Values.images .image -}}
{{ printf "%s:%s" $image.repository ($image.tag | default .root.Chart.AppVersion) | quote }}
imagePullPolicy: {{ .root.Values.images.pullPolicy }}
{{- end -}}

{{/* Where the control plane answers. */}}
{{- define "pollux.control" -}}
{{- if .Values.control.address -}}
{{ .Values.control.address }}
{{- else -}}
{{ printf "%s.%s.svc:%v" (include "pollux.name" (dict "root" . "part" "control")) .Release.Namespace .Values.control.port }}
{{- end -}}
{{- end -}}

{{/* Where traces are sent, as arguments. */}}
{{- define "pollux.tracing" -}}
{{- with .Values.tracing.otlp -}}
- --tracing-otlp={{ . }}
- --tracing-sample-ratio={{ $.Values.tracing.sampleRatio }}
{{- end }}
{{- end -}}

{{/* What most containers may. */}}
{{- define "pollux.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}
