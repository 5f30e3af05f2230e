// Validates files with the schema that CycloneDX's own library has.
import { readFileSync } from 'node:fs'
import { Spec, Validation } from '@cyclonedx/cyclonedx-library'

const validator = new Validation.JsonStrictValidator(Spec.Version.v1dot6)
for (const file of process.argv.slice(2)) {
  const error = await validator.validate(readFileSync(file, 'utf8'))
  if (error !== null) {
    console.error(file, error)
    process.exitCode = 1
  }
}
