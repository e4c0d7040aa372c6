export declare function l10nBundle(): Promise<string>
